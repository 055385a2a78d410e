//! Writes the manual page and the shells' completions into `target/pages`, from the program's own definitions: `make deb` packs
//! them.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use clap_complete::Shell;
use clap_mangen::Man;
use pbx_control_portal::help::{self, EXAMPLES, EXIT_STATUS, PRECEDENCE, documented};

fn main() -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/pages");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("pbx-portal.1"), manual_page()?)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut help::definition(), "pbx-portal", &folder)?;
    }
    Ok(())
}

fn manual_page() -> io::Result<Vec<u8>> {
    let program = help::definition();
    let of_program = Man::new(program.clone());
    let mut page = Vec::new();
    of_program.render_title(&mut page)?;
    of_program.render_name_section(&mut page)?;
    writeln!(page, ".SH SYNOPSIS\n\\fBpbx\\-portal\\fR [\\fICOMMAND\\fR] [\\fIOPTIONS\\fR]")?;
    let commands = program.get_subcommands().map(|command| (command.get_name(), about(command.get_about())));
    section(&mut page, "COMMANDS", "", commands)?;
    let serve = program.find_subcommand("serve").expect("the default command");
    // Its flags; the settings that are none follow.
    Man::new(serve.clone().after_help("")).render_options_section(&mut page)?;
    section(&mut page, "ENVIRONMENT", PRECEDENCE, documented())?;
    section(&mut page, "EXAMPLES", "", EXAMPLES)?;
    section(&mut page, "EXIT STATUS", "", EXIT_STATUS)?;
    writeln!(page, ".SH SEE ALSO\n\\fBasterisk\\fR(8), and the documents in /usr/share/doc/pbx\\-portal")?;
    Ok(page)
}

fn about(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

/// A section with an introduction and a list of terms.
fn section<T: AsRef<str>, M: AsRef<str>>(
    page: &mut Vec<u8>,
    title: &str,
    introduction: &str,
    terms: impl IntoIterator<Item = (T, M)>,
) -> io::Result<()> {
    writeln!(page, ".SH {title}\n{}", escaped(introduction))?;
    for (term, meaning) in terms {
        writeln!(page, ".TP\n\\fB{}\\fR\n{}", escaped(term.as_ref()), escaped(meaning.as_ref()))?;
    }
    Ok(())
}

/// Text that roff prints as it stands.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}
