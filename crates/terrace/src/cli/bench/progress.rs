//! Bars on a terminal, lines elsewhere.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use terrace_bench::figures::{Settings, ms};
use terrace_bench::run::Watch;
use terrace_bench::tally::Tick;

use super::super::screen;

/// One bar for the whole run, one for what is going on.
pub(super) struct Bars {
    all: MultiProgress,
    whole: ProgressBar,
    state: Mutex<State>,
}

struct State {
    what: String,
    bar: ProgressBar,
}

impl Bars {
    /// Bars for so many targets.
    pub(super) fn new(settings: &Settings, targets: usize) -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let turns = targets as u64 * u64::from(settings.repeat);
        let phases = 1 + u64::from(settings.connections.is_some());
        let whole = all.add(ProgressBar::new(turns * phases));
        whole.set_style(style("{elapsed_precise} {wide_bar} {pos}/{len} phases"));
        let state = State { what: String::new(), bar: ProgressBar::hidden() };
        Self { all, whole, state: Mutex::new(state) }
    }

    fn say(&self, line: &str) {
        if self.all.is_hidden() {
            screen::progress(line);
        } else {
            let _ = self.all.println(line);
        }
    }
}

impl Watch for Bars {
    fn begin(&self, what: &str, about: Option<Duration>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let length = about.map_or(1, |time| time.as_millis().try_into().unwrap_or(u64::MAX));
        let bar = self.all.add(ProgressBar::new(length));
        bar.set_style(match about {
            Some(_) => style("{prefix:.bold} {bar:20} {msg}"),
            None => style("{spinner} {prefix:.bold} {msg}"),
        });
        bar.set_prefix(what.to_owned());
        *state = State { what: what.to_owned(), bar };
    }

    fn tick(&self, tick: &Tick, every: Duration) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if every.is_zero() {
            state.bar.set_message(format!("{}", tick.done));
            state.bar.tick();
            return;
        }
        let step = every.as_millis().try_into().unwrap_or(1);
        state.bar.inc(step);
        #[expect(clippy::cast_precision_loss, reason = "a tick has few requests")]
        let rate = tick.done as f64 / every.as_secs_f64();
        let at = |quantile| ms(tick.latencies.value_at_quantile(quantile));
        state.bar.set_message(format!(
            "{rate:.0}/s p50 {:.1} p99 {:.1} ms, {} errors",
            at(0.5),
            at(0.99),
            tick.failed
        ));
    }

    fn end(&self, result: &str) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bar.finish_and_clear();
        self.say(&format!("{}: {result}", state.what));
        if state.what.contains("loop") {
            self.whole.inc(1);
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.whole.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
