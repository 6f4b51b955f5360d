//! The `terrace` program.

use std::process::ExitCode;

/// Less contention between threads than the system's allocator, and less memory at rest.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    terrace::cli::main()
}
