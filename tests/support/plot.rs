//! Plots as SVG, drawn by hand: a file that any browser and any forge shows.

use std::fmt::Write as _;

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 240.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;

const COLOURS: [&str; 14] = [
    "#0b6fa4", "#d1495b", "#3c8d53", "#e39b2d", "#6a4c93", "#5c6b73", "#9c6644", "#1b998b", "#c77dff", "#8ab17d",
    "#264653", "#f4a261", "#b5179e", "#7f7f00",
];

/// A line through points.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// Lines over a common pair of axes, which begin at zero.
pub fn lines(title: &str, x: &str, y: &str, lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|line| &line.points);
    let (x_step, x_end) = axis(all().map(|point| point.0).fold(0.0, f64::max));
    let (y_step, y_end) = axis(all().map(|point| point.1).fold(0.0, f64::max));
    let place = |point: (f64, f64)| {
        (LEFT + point.0 / x_end * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - point.1 / y_end * (HEIGHT - TOP - BOTTOM))
    };
    let mut svg = begin(title);
    for value in ticks(x_step, x_end) {
        let (at, _) = place((value, 0.0));
        text(&mut svg, at, HEIGHT - BOTTOM + 18.0, "middle", &number(value));
    }
    for value in ticks(y_step, y_end) {
        let (_, at) = place((0.0, value));
        rule(&mut svg, at, LEFT, WIDTH - RIGHT);
        text(&mut svg, LEFT - 8.0, at + 4.0, "end", &number(value));
    }
    text(&mut svg, f64::midpoint(LEFT, WIDTH - RIGHT), HEIGHT - 12.0, "middle", x);
    text(&mut svg, 8.0, TOP - 10.0, "start", y);
    for (index, line) in lines.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let points: String = line.points.iter().fold(String::new(), |points, point| {
            let (x, y) = place(*point);
            points + &format!("{x:.1},{y:.1} ")
        });
        writeln!(svg, r#"<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>"#).expect("text");
        if line.points.len() <= 12 {
            for (x, y) in line.points.iter().map(|point| place(*point)) {
                writeln!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.5" fill="{colour}"/>"#).expect("text");
            }
        }
        legend(&mut svg, index, colour, &line.name);
    }
    svg + "</svg>\n"
}

/// Horizontal bars, each of named parts one behind the other; equal names have one colour.
pub fn bars(title: &str, x: &str, bars: &[(String, Vec<(String, f64)>)]) -> String {
    let total = |parts: &[(String, f64)]| parts.iter().map(|part| part.1).sum::<f64>();
    let (step, end) = axis(bars.iter().map(|(_, parts)| total(parts)).fold(0.0, f64::max));
    let left = LEFT + 85.0;
    let place = |value: f64| left + value / end * (WIDTH - left - RIGHT);
    let mut svg = begin(title);
    for value in ticks(step, end) {
        text(&mut svg, place(value), HEIGHT - BOTTOM + 18.0, "middle", &number(value));
    }
    text(&mut svg, f64::midpoint(left, WIDTH - RIGHT), HEIGHT - 12.0, "middle", x);
    let mut names: Vec<&str> = Vec::new();
    let count = f64::from(u32::try_from(bars.len()).expect("few bars"));
    let room = (HEIGHT - TOP - BOTTOM) / count;
    let mut top = TOP + room * 0.2;
    for (name, parts) in bars {
        text(&mut svg, left - 8.0, top + room * 0.35, "end", name);
        let mut begin = 0.0;
        for (part, value) in parts {
            let index = names.iter().position(|name| name == part).unwrap_or_else(|| {
                names.push(part);
                names.len() - 1
            });
            writeln!(
                svg,
                r#"<rect x="{:.1}" y="{top:.1}" width="{:.1}" height="{:.1}" fill="{}"/>"#,
                place(begin),
                place(begin + value) - place(begin),
                room * 0.6,
                COLOURS[index % COLOURS.len()]
            )
            .expect("text");
            begin += value;
        }
        top += room;
    }
    for (index, name) in names.iter().enumerate() {
        legend(&mut svg, index, COLOURS[index % COLOURS.len()], name);
    }
    svg + "</svg>\n"
}

fn begin(title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{:.1}\" y=\"18\" text-anchor=\"middle\" font-size=\"14\">{title}</text>\n",
        WIDTH / 2.0
    )
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#).expect("text");
}

fn rule(svg: &mut String, y: f64, from: f64, to: f64) {
    writeln!(svg, r##"<line x1="{from}" x2="{to}" y1="{y:.1}" y2="{y:.1}" stroke="#ddd"/>"##).expect("text");
}

fn legend(svg: &mut String, index: usize, colour: &str, name: &str) {
    let y = TOP + 18.0 * f64::from(u32::try_from(index).expect("few lines"));
    writeln!(svg, r#"<rect x="{:.1}" y="{y:.1}" width="10" height="10" fill="{colour}"/>"#, WIDTH - RIGHT + 10.0)
        .expect("text");
    text(svg, WIDTH - RIGHT + 26.0, y + 9.0, "start", name);
}

/// The distance of ticks, and the end, of an axis that reaches a value.
fn axis(reach: f64) -> (f64, f64) {
    let rough = (reach / 5.0).max(f64::MIN_POSITIVE);
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough);
    let step = step.unwrap_or(1.0);
    (step, (reach / step).ceil().max(1.0) * step)
}

fn ticks(step: f64, end: f64) -> impl Iterator<Item = f64> {
    std::iter::successors(Some(0.0), move |value| Some(value + step))
        .take_while(move |value| *value <= end + step / 2.0)
}

fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
