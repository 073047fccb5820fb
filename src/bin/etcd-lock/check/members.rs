//! What each member of etcd says about itself: requests that the library, which is about locks, does not make.

use std::future::Future;
use std::time::Duration;

use etcd_client::StatusResponse;

use super::finding::{Finding, Level};
use super::releases::defects;
use crate::client::connect;
use crate::exit::Failure;
use crate::settings::Settings;

/// Asks every endpoint by itself.
pub(super) fn look(settings: &Settings) -> Result<Vec<Finding>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::internal("no runtime can be started", error))?;
    let findings = settings.endpoints.iter().flat_map(|endpoint| {
        match runtime.block_on(within(settings.timeout, status(settings, endpoint))) {
            Ok(status) => said(endpoint, &status),
            Err(error) => vec![Finding::new(Level::Warn, endpoint, error)],
        }
    });
    Ok(findings.collect())
}

async fn within<T>(
    limit: Duration,
    ask: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, String> {
    match tokio::time::timeout(limit, ask).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}

async fn status(settings: &Settings, endpoint: &str) -> Result<StatusResponse, etcd_client::Error> {
    connect(settings, endpoint).await?.status().await
}

/// What a member's answer means for locks.
fn said(endpoint: &str, status: &StatusResponse) -> Vec<Finding> {
    let member = status.header().map_or(0, etcd_client::ResponseHeader::member_id);
    let part = match status.leader() {
        0 => "without a leader",
        leader if leader == member => "the leader",
        _ if status.is_learner() => "a learner",
        _ => "a follower",
    };
    let size = status.db_size().unsigned_abs() / 1024;
    let level = if status.leader() == 0 { Level::Warn } else { Level::Ok };
    let text = format!("etcd {}, {part}, {size} KiB", status.version());
    let mut findings = vec![Finding::new(level, endpoint, text)];
    match defects(status.version()) {
        Ok(defects) => findings.extend(defects.iter().map(|what| Finding::new(Level::Warn, endpoint, *what))),
        Err(unknown) => findings.push(Finding::new(Level::Warn, endpoint, unknown)),
    }
    findings.extend(status.errors().iter().map(|alarm| Finding::new(Level::Warn, endpoint, alarm.trim())));
    findings
}
