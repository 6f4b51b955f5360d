//! What the router tells the caches above it.

use terrace_core::{Generation, Generations as _, Proof, Standing};

use super::*;

/// What an entry of this life and this generation proves.
fn proof(life: u64, generation: u64) -> Proof {
    Proof {
        history: servers::life(life).history,
        generation: Generation::new(generation),
        through: Position::new(100),
        shown: Position::NONE,
    }
}

#[tokio::test(start_paused = true)]
async fn a_raise_goes_to_the_primary_and_is_heard_at_once() {
    let servers = Servers::new(2);
    let router = servers.router().await;
    let mut changes = router.changes();
    changes.mark_unchanged();
    assert!(router.admits(&proof(1, 0), None));
    router.raise(&[key("a")]).await.unwrap();
    assert!(!router.admits(&proof(1, 0), None) && router.admits(&proof(1, 1), None));
    assert!(changes.has_changed().unwrap());
    // Replicas show it later; that takes nothing back.
    pass(SECOND).await;
    assert!(!router.admits(&proof(1, 0), None));
    servers.fail(0, true);
    assert!(router.raise(&[key("a")]).await.is_err());
}

/// Raised by another instance, or by a promotion.
#[tokio::test(start_paused = true)]
async fn what_the_primary_says_is_heard() {
    let servers = Servers::new(2);
    let router = servers.router().await;
    servers.change(0, |state| state.standing.generation = Generation::new(4));
    router.look().await.unwrap();
    assert!(!router.admits(&proof(1, 3), None) && router.admits(&proof(1, 4), None));
    servers.promote(1, 2, 120);
    pass(SECOND).await;
    assert!(!router.admits(&proof(1, 9), None) && router.admits(&proof(2, 0), None));
}

#[tokio::test(start_paused = true)]
async fn a_look_counts_when_the_primary_has_answered() {
    let servers = Servers::new(3);
    // A former primary, which goes on answering.
    servers.promote(1, 2, 120);
    let router = servers.router().await;
    router.look().await.unwrap();
    servers.silence(1, true);
    pass(5 * SECOND).await;
    let looked_at = router.looked_at().unwrap();
    assert!(Runtime::system().now() - looked_at >= 4 * SECOND, "nobody has looked at the primary");
    assert!(router.look().await.is_err(), "it does not answer");
    assert_eq!(router.looked_at(), Some(looked_at));
    servers.silence(1, false);
    router.look().await.unwrap();
    assert_eq!(router.looked_at(), Some(Runtime::system().now()));
    assert!(router.admits(&Proof { history: Standing::of("db.2").history, ..proof(2, 0) }, None));
}
