//! `docs/performance.md`, from figures alone.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use support::figures;
use support::plot::{self, Line};

/// How long a part of something took.
pub struct Part {
    pub name: String,
    pub milliseconds: f64,
}

/// An apply of so many users, and the bare reloads; in milliseconds.
#[derive(Clone, Copy)]
pub struct Size {
    pub users: usize,
    pub apply: f64,
    pub bare: f64,
}

pub struct Document {
    load: String,
    rows: Vec<(String, String)>,
    kept: bool,
    sizes: Vec<(&'static str, Size)>,
    parts: Vec<(&'static str, String, Vec<Part>)>,
    creates: Vec<(&'static str, usize, f64, f64)>,
}

impl Document {
    pub fn begin() -> Self {
        let load = figures::load();
        Self { load, rows: Vec::new(), kept: true, sizes: Vec::new(), parts: Vec::new(), creates: Vec::new() }
    }

    pub fn row(&mut self, database: &str, what: &str, figure: &str, limit: &str, kept: bool) {
        let state = if kept { "kept" } else { "**not kept**" };
        println!("{database}: {what}: {figure}, {limit}: {state}");
        self.rows.push((database.to_owned(), format!("| {what} | {figure} | {limit} | {state} |")));
        self.kept &= kept;
    }

    pub fn size(&mut self, database: &'static str, size: Size) {
        self.sizes.push((database, size));
    }

    fn sizes(&self, database: &str) -> Vec<Size> {
        self.sizes.iter().filter(|(own, _)| *own == database).map(|(_, size)| *size).collect()
    }

    pub fn parts(&mut self, database: &'static str, scene: &str, parts: Vec<Part>) {
        self.parts.push((database, scene.to_owned(), parts));
    }

    pub fn creates(&mut self, database: &'static str, clients: usize, ours: f64, bare: f64) {
        self.creates.push((database, clients, ours, bare));
    }

    /// Writes everything; gives whether all limits are kept.
    pub fn end(mut self) -> bool {
        let load = figures::load();
        let build = self.build();
        let mut page = format!(
            "# Performance\n\n`make bench` writes this page; nothing in it is typed by hand. It ends with status 1 if a limit is not kept.\n\n\
             An apply is measured against Asterisk's own two reloads, a list against the database's own query, a create against the \
             database's own transaction. Each figure and its baseline took turns in the same run. A ratio is the median of the \
             rounds' ratios; in brackets are the quartiles, and behind them the medians of both.\n\n\
             Measured on {}. The machine's load was {} at the beginning and {} at the end. Asterisk, both databases and the clients \
             run on the same machine; both databases flush each commit to the disk.\n\n\
             `make soak` measures over twenty minutes, and writes [performance/soak.md](performance/soak.md).\n",
            figures::machine(),
            self.load,
            load
        );
        for (database, title) in [
            ("", "The program"),
            ("SQLite", "On SQLite"),
            ("PostgreSQL", "On PostgreSQL"),
            ("both", "Whatever the database"),
        ] {
            writeln!(page, "\n## {title}\n\n| what | figure | limit | |\n|---|---|---|---|").expect("text");
            for (_, row) in self.rows.iter().filter(|(own, _)| own == database) {
                writeln!(page, "{row}").expect("text");
            }
            match database {
                "" => page += &build,
                "both" => {}
                database => self.plots(&mut page, database),
            }
        }
        fs::write(root().join("docs/performance.md"), page).expect("write the page");
        self.kept
    }

    /// Times a release build from nothing, without what the tests alone need, and looks at what comes of it.
    fn build(&mut self) -> String {
        let folder = root().join("target/bench-build");
        let _ = fs::remove_dir_all(&folder);
        let started = Instant::now();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--release", "--locked", "--bin", "pbx-portal", "--target-dir"]).arg(&folder);
        assert!(cargo.current_dir(root()).status().expect("run cargo").success());
        let seconds = started.elapsed().as_secs();
        let size = fs::metadata(folder.join("release/pbx-portal")).expect("the binary").len() as f64 / 1024.0 / 1024.0;
        let _ = fs::remove_dir_all(&folder);
        self.row("", "release binary", &format!("{size:.2} MiB"), "< 15 MiB", size < 15.0);

        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}"])
            .current_dir(root());
        let tree = String::from_utf8_lossy(&cargo.output().expect("run cargo tree").stdout).into_owned();
        let crates: BTreeSet<_> = tree.lines().filter_map(|line| line.split(" (").next()).collect();
        format!(
            "\n{} crates are compiled for the program, of which it names {} itself. A release build from nothing: {seconds} seconds. \
             [Cargo.toml](../Cargo.toml) has the reason for each.\n",
            crates.len() - 1,
            direct_dependencies()
        )
    }

    fn plots(&self, page: &mut String, database: &'static str) {
        let small = database.to_lowercase();
        let mut plot = |name: &str, what: &str, svg: String| {
            fs::create_dir_all(root().join("docs/performance")).expect("make the folder");
            fs::write(root().join(format!("docs/performance/{name}-{small}.svg")), svg).expect("write a plot");
            writeln!(page, "\n![{what}](performance/{name}-{small}.svg)").expect("text");
        };
        let sizes = self.sizes(database);
        let line = |name: &str, value: fn(&Size) -> f64| Line {
            name: name.to_owned(),
            points: sizes.iter().map(|size| (size.users as f64, value(size))).collect(),
        };
        let lines = [line("apply", |size| size.apply), line("bare reloads", |size| size.bare)];
        plot(
            "apply",
            "Apply against the number of users",
            plot::lines(&format!("Apply, nothing changed ({database})"), "users", "milliseconds", &lines),
        );
        let own = || self.parts.iter().filter(|(own, ..)| *own == database);
        let bars: Vec<_> = own()
            .map(|(_, scene, parts)| {
                (scene.clone(), parts.iter().map(|part| (part.name.clone(), part.milliseconds)).collect())
            })
            .collect();
        plot(
            "steps",
            "Where the time of an apply goes",
            plot::bars(&format!("Where the time of an apply of 1000 goes ({database})"), "milliseconds", &bars),
        );
        let creates: Vec<_> = self.creates.iter().filter(|(own, ..)| *own == database).collect();
        let line = |name: &str, value: fn(&(&'static str, usize, f64, f64)) -> f64| Line {
            name: name.to_owned(),
            points: creates.iter().map(|row| (row.1 as f64, value(row))).collect(),
        };
        let lines = [line("creates", |row| row.2), line("bare transactions", |row| row.3)];
        plot(
            "creates",
            "Creates a second against clients",
            plot::lines(&format!("Creates ({database})"), "clients", "a second", &lines),
        );
        *page += "\nWhere the time of an apply goes:\n";
        writeln!(page, "\n| apply of 1000 | step | ms |\n|---|---|---|").expect("text");
        for (_, scene, parts) in own() {
            for part in parts {
                writeln!(page, "| {scene} | {} | {:.1} |", part.name, part.milliseconds).expect("text");
            }
        }
    }
}

fn direct_dependencies() -> usize {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    let (_, own) = manifest.split_once("\n[dependencies]\n").expect("dependencies");
    own.lines().take_while(|line| !line.starts_with('[')).filter(|line| line.contains(" = ")).count()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
