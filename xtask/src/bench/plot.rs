//! A plot with logarithmic x-axis, as SVG.

use std::fmt::Write;

/// Size of the picture and of its margins.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 44.0;
/// Colours that people with any sight of colours can tell apart (Okabe and Ito), on light and dark grounds.
const COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"];

/// The points of one line.
#[derive(Debug)]
pub(super) struct Line {
    name: &'static str,
    points: Vec<(u64, f64)>,
}

impl Line {
    pub(super) fn new(name: &'static str, points: Vec<(u64, f64)>) -> Self {
        Self { name, points }
    }
}

/// Draws the values of each line, relative to its first value.
pub(super) fn svg(title: &str, lines: &[Line]) -> String {
    let relative: Vec<(&str, Vec<(f64, f64)>)> =
        lines.iter().map(|line| (line.name, relative(line))).collect();
    let all = || relative.iter().flat_map(|(_, points)| points);
    let x_most = all().map(|(x, _)| x.log10().ceil()).fold(1.0, f64::max);
    let y_most = all().map(|(_, y)| y.ceil()).fold(2.0, f64::max);
    let x_of = |x: f64| LEFT + x.log10() / x_most * (WIDTH - LEFT - RIGHT);
    let y_of = |y: f64| HEIGHT - BOTTOM - y / y_most * (HEIGHT - TOP - BOTTOM);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n<text x=\"{LEFT}\" y=\"20\" \
         font-size=\"14\">{title}</text>\n"
    );
    let mut y = 0.0;
    while y <= y_most {
        let at = y_of(y);
        let _ = writeln!(
            text,
            "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" \
             text-anchor=\"end\">{y}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0
        );
        y += (y_most / 5.0).ceil();
    }
    for exponent in 0..=x_most as i32 {
        let (at, bottom) = (x_of(10_f64.powi(exponent)), HEIGHT - BOTTOM + 18.0);
        let _ = writeln!(
            text,
            "<text x=\"{at:.1}\" y=\"{bottom:.1}\" text-anchor=\"middle\">{}</text>",
            10_u64.pow(exponent as u32)
        );
    }
    for ((_, points), colour) in relative.iter().zip(COLOURS.iter().cycle()) {
        let path: Vec<String> =
            points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_of(*x), y_of(*y))).collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
    }
    for (at, ((name, _), colour)) in relative.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let (x, y) = (WIDTH - RIGHT + 16.0, TOP + 18.0 * at as f64 + 8.0);
        let _ = writeln!(
            text,
            "<path d=\"M{x} {y}h18\" stroke=\"{colour}\" stroke-width=\"2\"/><text x=\"{:.1}\" y=\"{:.1}\">{name}</text>",
            x + 24.0,
            y + 4.0
        );
    }
    text + "</svg>\n"
}

fn relative(line: &Line) -> Vec<(f64, f64)> {
    let first = line.points.first().map_or(1.0, |(_, value)| *value).max(f64::MIN_POSITIVE);
    line.points.iter().map(|(x, value)| (*x as f64, value / first)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_begins_at_one_and_stays_within_the_picture() {
        let lines = [
            Line::new("a", vec![(1, 10.0), (10, 20.0), (1_000_000, 30.0)]),
            Line::new("b", vec![(10, 5.0), (100, 5.0)]),
        ];
        let text = svg("title", &lines);
        assert_eq!(text.matches("<polyline").count(), 2);
        let points = text.split("points=\"").skip(1).filter_map(|rest| rest.split('"').next());
        let points: Vec<Vec<(f64, f64)>> = points
            .map(|points| {
                let of_point = |point: &str| {
                    let (x, y) = point.split_once(',')?;
                    Some((x.parse().ok()?, y.parse().ok()?))
                };
                points.split(' ').filter_map(of_point).collect()
            })
            .collect();
        assert_eq!(points.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(points[0][0].1, points[1][0].1, "both begin at the height of 1");
        assert_eq!(points[1][0].1, points[1][1].1);
        assert!(points[0][2].1 < points[0][1].1, "a larger value is higher");
        assert!(
            points.iter().flatten().all(|(x, y)| (0.0..=WIDTH).contains(x) && (0.0..=HEIGHT).contains(y))
        );
    }
}
