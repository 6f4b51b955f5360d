//! Line charts as inline SVG, whose colours and text follow the page.
//!
//! Drawn by hand: a plotting library writes fixed colours and sizes into its SVG, and then a page can
//! neither be dark nor be read on a phone.

use maud::{Markup, html};

use crate::summary::{millis, thousands};

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 270.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 26.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;

/// A named line.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) colour: usize,
    pub(super) points: Vec<(f64, f64)>,
    /// Points that need attention.
    pub(super) marks: Vec<(f64, f64)>,
}

/// What an axis shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scale {
    /// 50 %, 90 %, 99 %, ...: x is the number of nines.
    Nines,
    /// Requests a second, from zero.
    Rate,
    /// Seconds, from zero.
    Seconds,
    /// Milliseconds, logarithmic.
    Millis,
}

struct Axis {
    scale: Scale,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(scale: Scale, values: impl Iterator<Item = f64> + Clone) -> Self {
        let high = values.clone().fold(0.0, f64::max);
        match scale {
            Scale::Nines => Self { scale, from: 0.0, to: 4.0 },
            Scale::Rate | Scale::Seconds => {
                let step = step(high.max(1e-9));
                Self { scale, from: 0.0, to: ((high / step).ceil() * step).max(step) }
            }
            Scale::Millis => {
                let low = values.filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
                let low = if low.is_finite() { low } else { 1.0 };
                let (from, to) = (low.log10().floor(), high.max(low).log10().ceil());
                Self { scale, from, to: to.max(from + 1.0) }
            }
        }
    }

    /// 0 at the beginning of the axis, 1 at its end.
    fn part(&self, value: f64) -> f64 {
        let at = match self.scale {
            Scale::Millis => value.max(1e-6).log10(),
            _ => value,
        };
        ((at - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Nines => ["0 %", "90 %", "99 %", "99.9 %", "99.99 %"]
                .into_iter()
                .zip(0u8..)
                .map(|(label, at)| (f64::from(at), label.to_owned()))
                .collect(),
            Scale::Millis => {
                let decades = count(self.to - self.from);
                (0..=decades)
                    .map(|decade| 10f64.powf(self.from + f64::from(decade)))
                    .map(|value| (value, short_millis(value)))
                    .collect()
            }
            Scale::Rate | Scale::Seconds => {
                let step = step(self.to);
                (0..=count(self.to / step))
                    .map(|at| f64::from(at) * step)
                    .map(|value| (value, thousands(value)))
                    .collect()
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few ticks")]
fn count(number: f64) -> u32 {
    number.round().clamp(0.0, 20.0) as u32
}

/// A round step that divides the axis into about four.
fn step(high: f64) -> f64 {
    let rough = high / 4.0;
    let decade = 10f64.powf(rough.log10().floor());
    let nice = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|nice| nice * decade >= rough);
    nice.unwrap_or(10.0) * decade
}

fn short_millis(ms: f64) -> String {
    match ms {
        ms if ms >= 1000.0 => format!("{} s", ms / 1000.0),
        ms if ms >= 1.0 => format!("{ms} ms"),
        ms => format!("{} µs", (ms * 1000.0).round()),
    }
}

/// A chart; `label` says in words what it shows.
pub(super) fn chart(label: &str, x: (Scale, &str), y: Scale, series: &[Series]) -> Markup {
    let points = || series.iter().flat_map(|one| &one.points);
    let across = Axis::over(x.0, points().map(|point| point.0));
    let up = Axis::over(y, points().map(|point| point.1));
    let at_x = |value| LEFT + across.part(value) * (WIDTH - LEFT - RIGHT);
    let at_y = |value| HEIGHT - BOTTOM - up.part(value) * (HEIGHT - TOP - BOTTOM);
    let path = |points: &[(f64, f64)]| {
        let drawn = points.iter().map(|(x, y)| format!("{:.1},{:.1}", at_x(*x), at_y(*y)));
        drawn.collect::<Vec<_>>().join(" ")
    };
    html! {
        figure {
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(label) {
                @for (value, text) in up.ticks() {
                    @let y = at_y(value);
                    line.grid x1=(LEFT) x2=(WIDTH - RIGHT) y1=(y) y2=(y) {}
                    text x=(LEFT - 6.0) y=(y + 4.0) text-anchor="end" { (text) }
                }
                @for (value, text) in across.ticks() {
                    @let x = at_x(value);
                    line.tick x1=(x) x2=(x) y1=(HEIGHT - BOTTOM) y2=(HEIGHT - BOTTOM + 4.0) {}
                    text x=(x) y=(HEIGHT - BOTTOM + 17.0) text-anchor="middle" { (text) }
                }
                text.axis x=((LEFT + WIDTH - RIGHT) / 2.0) y=(HEIGHT - 6.0) text-anchor="middle" { (x.1) }
                @for one in series {
                    polyline class=(format!("line c{}", one.colour % 8)) points=(path(&one.points)) {
                        title { (one.name) }
                    }
                    @for (x, y) in &one.marks {
                        circle.mark cx=(format!("{:.1}", at_x(*x))) cy=(format!("{:.1}", at_y(*y))) r="4" {}
                    }
                }
            }
            figcaption.legend {
                @for one in series {
                    span { i class=(format!("key c{}", one.colour % 8)) {} (one.name) }
                }
            }
        }
    }
}

/// A bar with its name and its figure; `part` of the longest.
pub(super) fn bar(name: &str, colour: usize, part: f64, figure: &str) -> Markup {
    html! {
        div.bar {
            span.name { (name) }
            span.track { i class=(format!("fill c{}", colour % 8)) style=(format!("width:{:.1}%", (part * 100.0).clamp(0.5, 100.0))) {} }
            span.figure { (figure) }
        }
    }
}

/// Milliseconds for a table.
pub(super) fn cell(ms: Option<f64>) -> String {
    ms.map_or_else(|| "–".into(), millis)
}
