//! What reaches the terminal: the only place that prints.

use std::io::{self, ErrorKind, IsTerminal, Write as _};
use std::sync::OnceLock;

use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};

use super::Failure;

/// Why a line could not be printed, the first time.
static LOST: OnceLock<io::Error> = OnceLock::new();

/// Prints a line for the person, or the program, that asked. Whether it could is told by [`written`].
pub(super) fn line(text: &str) {
    if let Err(error) = writeln!(io::stdout(), "{text}") {
        let _the_first_is_told = LOST.set(error);
    }
}

/// Whether all lines were printed.
pub(super) fn written() -> Result<(), Failure> {
    match io::stdout().flush().err().as_ref().or(LOST.get()).and_then(unwritten) {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// What became of output that met this error. A closed pipe (`terrace config | head`) is no failure.
pub(super) fn unwritten(error: &io::Error) -> Option<Failure> {
    let message = format!("the output cannot be written: {error}");
    (error.kind() != ErrorKind::BrokenPipe).then(|| Failure::failed(message))
}

/// Tells how far a command is, where its result is not mixed with it.
pub(super) fn progress(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints why the command failed.
pub(super) fn error(text: &str) {
    let _ =
        writeln!(io::stderr(), "{} {text}", paint("31;1", "error:", io::stderr().is_terminal()));
}

/// Text that stands out on a terminal, and plain text elsewhere.
pub(super) fn bold(text: &str) -> String {
    paint("1", text, io::stdout().is_terminal())
}

fn paint(code: &str, text: &str, terminal: bool) -> String {
    let colour = terminal && std::env::var_os("NO_COLOR").is_none();
    if colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// Prints rows under their headings, as wide as the terminal allows.
pub(super) fn table<const N: usize>(
    headings: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) {
    let mut table = plain();
    let bold = std::env::var_os("NO_COLOR").is_none();
    table.set_header(headings.map(|heading| match bold {
        // Only on a terminal, and not counted as width.
        true => Cell::new(heading).add_attribute(Attribute::Bold),
        false => Cell::new(heading),
    }));
    print(table, rows);
}

/// Prints facts: a name and a text each, as wide as the terminal allows.
pub(super) fn facts(rows: impl IntoIterator<Item = [String; 2]>) {
    print(plain(), rows);
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if !table.is_tty() {
        table.set_width(120);
    }
    table
}

fn print<const N: usize>(mut table: Table, rows: impl IntoIterator<Item = [String; N]>) {
    for row in rows {
        table.add_row(row.map(Cell::new));
    }
    for text in table.lines() {
        line(text.trim_end());
    }
}
