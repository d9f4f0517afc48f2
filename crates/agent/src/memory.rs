//! How the agent, which lives beside the database for years, gives back what it took for a moment.

use std::{os::unix::process::CommandExt, process::Command};

/// What the allocators read at the start of a process. Freed memory goes back at once: with a delay they look for what is due only when
/// they are asked for more, and what the last burst of WAL took would stay until the next. The second two are about C libraries, zstd
/// above all: one arena instead of one for each thread that ever compressed, and large blocks never become part of it.
const ENVIRONMENT: [(&str, &str); 3] =
    [("MIMALLOC_PURGE_DELAY", "0"), ("MALLOC_ARENA_MAX", "1"), ("MALLOC_TRIM_THRESHOLD_", "131072")];

/// Begins this program anew, in the same process, with allocators that give back.
pub fn give_back_at_once() {
    // Whoever set one of them has something else in mind.
    if ENVIRONMENT.iter().any(|(name, _)| std::env::var_os(name).is_some()) {
        return;
    }
    let failed = std::env::current_exe()
        .map(|program| Command::new(program).args(std::env::args_os().skip(1)).envs(ENVIRONMENT).exec());
    eprintln!("memory is given back late: {failed:?}");
}

/// The server's own programs have other needs.
pub fn leave_out(command: &mut Command) {
    for (name, _) in ENVIRONMENT {
        command.env_remove(name);
    }
}
