//! What packages of the program install beside it: completions of shells, and manual pages.

use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, Failure, screen};

/// Prints the completions of a shell.
pub(super) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "terrace", &mut script);
    screen::line(String::from_utf8_lossy(&script).trim_end());
    Ok(())
}

/// Writes a manual page for each command into a directory.
pub(super) fn manual(directory: &Path) -> Result<(), Failure> {
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory));
    written.map_err(|error| {
        Failure::failed(format!(
            "{}: the manual cannot be written: {error}; name another directory",
            directory.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `docs/commands.md`, from what `--help` says.
    fn reference() -> String {
        let mut text =
            "# Commands\n\nWhat `--help` says of each. `TERRACE_BLESS=1 cargo test -p terrace \
                        reference_of_commands` writes this page.\n"
                .to_owned();
        let mut root = Cli::command().term_width(100).disable_help_subcommand(true);
        root.build();
        describe(&mut root, &mut text);
        text
    }

    fn describe(command: &mut clap::Command, text: &mut String) {
        let name = command.get_bin_name().unwrap_or("terrace").to_owned();
        let help = command.render_long_help().to_string();
        let help = help.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
        text.push_str(&format!("\n## {name}\n\n```text\n{}\n```\n", help.trim()));
        command.get_subcommands_mut().for_each(|command| describe(command, text));
    }

    #[test]
    fn the_reference_of_commands_is_what_help_says() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/commands.md");
        let now = reference();
        if std::env::var_os("TERRACE_BLESS").is_some() {
            std::fs::write(page, &now).unwrap();
        }
        let written = std::fs::read_to_string(page).unwrap();
        assert!(written == now, "run again with TERRACE_BLESS=1, which writes docs/commands.md");
    }

    #[test]
    fn there_is_a_page_for_each_command() {
        let directory = tempfile::tempdir().unwrap();
        manual(&directory.path().join("man1")).unwrap();
        let pages = std::fs::read_dir(directory.path().join("man1")).unwrap();
        let pages: Vec<_> = pages.map(|page| page.unwrap().file_name()).collect();
        for page in ["terrace.1", "terrace-serve.1", "terrace-backup-restore.1"] {
            assert!(pages.iter().any(|name| name == page), "{page} is not among {pages:?}");
        }
    }

    #[test]
    fn each_shell_completes_the_commands() {
        use clap::ValueEnum as _;
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "terrace", &mut script);
            assert!(String::from_utf8(script).unwrap().contains("reconcile"), "{shell}");
        }
    }
}
