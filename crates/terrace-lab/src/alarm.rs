//! Waiting for a moment, more finely than a runtime's timers, which are a millisecond coarse.
//!
//! On Linux a timer of the kernel wakes the worker (`timerfd_create(2)`); elsewhere, and on paused
//! time, the runtime's timer does, and starts may be up to a millisecond late.

use std::time::Instant;

use terrace_core::Runtime;

/// Wakes one worker at the moments of its schedule.
#[derive(Debug)]
pub struct Alarm {
    runtime: Runtime,
    #[cfg(target_os = "linux")]
    fine: Option<linux::Timer>,
}

impl Alarm {
    /// As fine as the system allows. Needs a tokio runtime around the caller.
    pub fn fine(runtime: Runtime) -> Self {
        Self {
            runtime,
            #[cfg(target_os = "linux")]
            fine: linux::Timer::new().ok(),
        }
    }

    /// As fine as the runtime's timers, also on paused time.
    pub fn coarse(runtime: Runtime) -> Self {
        Self {
            runtime,
            #[cfg(target_os = "linux")]
            fine: None,
        }
    }

    /// Ends at `when`.
    pub async fn at(&self, when: Instant) {
        #[cfg(target_os = "linux")]
        if let Some(timer) = &self.fine {
            let left = when.saturating_duration_since(self.runtime.now());
            if left.is_zero() || timer.wait(left).await.is_ok() {
                return;
            }
        }
        self.runtime.sleep_until(when).await;
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::{AsFd as _, AsRawFd, RawFd};
    use std::time::Duration;

    use nix::sys::time::TimeSpec;
    use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
    use tokio::io::unix::AsyncFd;

    #[derive(Debug)]
    struct Descriptor(TimerFd);

    impl AsRawFd for Descriptor {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_fd().as_raw_fd()
        }
    }

    /// A timer of the kernel as something that becomes readable.
    #[derive(Debug)]
    pub(super) struct Timer(AsyncFd<Descriptor>);

    impl Timer {
        pub(super) fn new() -> io::Result<Self> {
            let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
            let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
            #[expect(deprecated, reason = "its successor is unsafe; this descriptor stays ours")]
            let timer = AsyncFd::new(Descriptor(timer))?;
            Ok(Self(timer))
        }

        pub(super) async fn wait(&self, time: Duration) -> io::Result<()> {
            let timer = &self.0.get_ref().0;
            let once = Expiration::OneShot(TimeSpec::from_duration(time));
            timer.set(once, TimerSetTimeFlags::empty())?;
            loop {
                let mut ready = self.0.readable().await?;
                // Reading takes the expiry away; without one the readiness was an old one.
                match ready.try_io(|_| Ok(timer.wait()?)) {
                    Ok(done) => return done,
                    Err(_would_block) => {}
                }
            }
        }
    }
}
