//! `terrace serve LEVEL --canary FILE`: a second stack in the same process, for some of the clients.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use terrace_core::Runtime;

use super::run::fatal;
use super::{Failure, Settings, known};
use crate::config::{Config, Mode};
use crate::http::{ClientShare, Guards};
use crate::levels::{Engines, Level, Servers, Side, beside};

/// The flags of a canary.
#[derive(Args, Debug)]
pub(super) struct CanaryFlags {
    /// Serve some of the clients by a second stack, with the settings of this file over all others.
    #[arg(long, value_name = "FILE", requires = "percent")]
    canary: Option<PathBuf>,
    /// The level of the second stack [default: the same].
    #[arg(long, value_name = "LEVEL", requires = "canary")]
    canary_level: Option<u8>,
    /// Its share of the clients: 0.1 to 50 in a hundred, or 0 to compare reads alone.
    #[arg(long, requires = "canary")]
    percent: Option<ClientShare>,
}

/// A canary that is to be built.
#[derive(Debug)]
pub(super) struct CanaryPlan {
    file: String,
    level: &'static Level,
    share: ClientShare,
    config: Arc<Config>,
    mode: Mode,
    /// Its engines, where they are not the baseline's.
    own: Option<Servers>,
}

impl CanaryFlags {
    /// What they ask for; `None` where there is no canary.
    ///
    /// # Errors
    /// An unknown level, what is wrong with the file, and what it sets that counts for both stacks.
    pub(super) fn plan(
        self,
        baseline: &'static Level,
        config: &Config,
        settings: &Settings,
    ) -> Result<Option<CanaryPlan>, Failure> {
        let (Some(path), Some(share)) = (self.canary, self.percent) else { return Ok(None) };
        let level = self.canary_level.map_or(Ok(baseline), known)?;
        let file = path.display().to_string();
        let own = settings.load_under(Some(path))?.config;
        if let Some(section) = common(config, &own) {
            return Err(Failure::usage(format!(
                "{file} sets [{section}], which counts before the two stacks; take it out, or set it for both"
            )));
        }
        let (mode, config) = (own.mode()?, Arc::new(own));
        Ok(Some(CanaryPlan { file, level, share, config, mode, own: None }))
    }
}

/// A section that both have in common, and that differs.
fn common(baseline: &Config, canary: &Config) -> Option<&'static str> {
    let differs = [
        ("server", baseline.server != canary.server),
        ("auth", baseline.auth != canary.auth),
        ("jwt", baseline.jwt != canary.jwt),
        ("limits", baseline.limits != canary.limits),
        ("edge", baseline.edge != canary.edge),
        ("metrics", baseline.metrics != canary.metrics),
        ("tls", baseline.tls != canary.tls),
        ("distance", baseline.distance != canary.distance),
        ("log", baseline.log != canary.log),
    ];
    differs.into_iter().find(|(_, differs)| *differs).map(|(section, _)| section)
}

impl CanaryPlan {
    /// Whether it uses the engines that this process runs for the baseline: one directory is served once.
    fn shares_engines(&self, config: &Config, mode: Mode) -> bool {
        mode == self.mode
            && mode != Mode::Servers
            && config.stores.data_dir == self.config.stores.data_dir
    }

    /// Whether it needs the baseline's far cache.
    pub(super) fn needs_cache_of(&self, config: &Config, mode: Mode) -> bool {
        self.shares_engines(config, mode) && self.level.uses_cache(&self.config)
    }

    /// Starts its engines, or takes the baseline's.
    ///
    /// # Errors
    /// What is missing, and the next step.
    pub(super) async fn start(&mut self, config: &Config, mode: Mode) -> Result<(), Failure> {
        if !self.shares_engines(config, mode) {
            let cached = self.level.uses_cache(&self.config);
            let started = Servers::start(&self.config, self.mode, cached).await;
            self.own = Some(started.map_err(|error| self.failure(&error))?);
        }
        Ok(())
    }

    /// Ends what [`start`](Self::start) has started.
    pub(super) async fn stop(&self) {
        if let Some(own) = &self.own {
            own.stop().await;
        }
    }

    /// Builds its stack, and the guard that chooses between that and the baseline's.
    ///
    /// # Errors
    /// What cannot be built, and why the two may not be served side by side.
    pub(super) async fn build(
        &self,
        baseline: Side<'_>,
        servers: &Servers,
        runtime: &Runtime,
    ) -> Result<Guards, Failure> {
        let servers = self.own.as_ref().unwrap_or(servers);
        let (shared, config) = (self.mode == Mode::Local, Arc::clone(&self.config));
        // Of work in the background that fails, each stack tells its own.
        let engines = Engines::new(self.level.number, shared, config, servers, runtime.apart());
        let stack = (self.level.build)(&engines).await.map_err(|error| self.failure(&error))?;
        let canary = Side { level: self.level, engines: &engines, stack: &stack };
        beside(baseline, canary, self.share).await.map_err(|error| self.failure(&error))
    }

    fn failure(&self, error: &terrace_core::Error) -> Failure {
        let why = fatal(error).text;
        Failure::failed(format!("--canary {} (level {}): {why}", self.file, self.level.number))
    }

    /// For the person who started it.
    pub(super) fn said(&self) -> String {
        let Self { file, level, share, .. } = self;
        let serves = match *share {
            ClientShare::NONE => "mirrors reads and serves nobody".to_owned(),
            share => format!("serves {share} % of the clients"),
        };
        format!(
            "Canary: level {} by {file} {serves}; /canary-stats says how it does.",
            level.number
        )
    }
}
