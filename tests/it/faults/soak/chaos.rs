//! Random faults, all chosen by the seed alone.

use std::time::Duration;

use etcd_lock::LockManager;
use fastrand::Rng;

use crate::support::oracle::now;
use crate::support::proxy::{Loss, Way};
use crate::support::wait::eventually_some;
use crate::support::{Access, Cluster, Proxy, Raw, eventually, lease_of};

const SOON: Duration = Duration::from_secs(60);

/// The targets of the faults.
pub(super) struct Stage<'a> {
    pub(super) cluster: &'a Cluster,
    /// Each manager's proxy to each member.
    pub(super) doors: &'a [Vec<Proxy>],
    pub(super) managers: &'a [LockManager],
    pub(super) root: &'a str,
}

/// A fault and its duration. Managers and members are given by number.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Freeze { manager: usize, millis: u64 },
    OneWay { manager: usize, to_server: bool, millis: u64 },
    Delay { manager: usize, by: u64, millis: u64 },
    Reset { manager: usize },
    LoseAnswer { manager: usize, silently: bool },
    MuteWatches { manager: usize, millis: u64 },
    StopMember { member: usize, millis: u64 },
    StopAll { millis: u64 },
    RestartMember { member: usize },
    RevokeLease { manager: usize },
    DeleteKey { pick: u64 },
    Compact,
}

/// Keys that were deleted by force; their holders may have relied on them for a moment longer.
#[derive(Debug, Default)]
pub(super) struct Evictions {
    /// A lease in hexadecimal or a whole key, and the time just before it was deleted.
    taken: Vec<(String, u64)>,
}

impl Evictions {
    /// When this key was deleted by force, if it was.
    pub(super) fn of(&self, key: &str) -> Option<u64> {
        let lease = key.rsplit('/').next().and_then(|last| last.split('-').next());
        let hits = self.taken.iter().filter(|(what, _)| what == key || Some(what.as_str()) == lease);
        hits.map(|(_, at)| *at).min()
    }
}

#[derive(Debug)]
pub(super) struct Chaos {
    rng: Rng,
    history: Vec<(u64, Fault)>,
    evictions: Evictions,
}

impl Chaos {
    pub(super) fn new(seed: u64) -> Self {
        Self { rng: Rng::with_seed(seed), history: Vec::new(), evictions: Evictions::default() }
    }

    /// Injects the next fault, from its start to its end, and pauses.
    pub(super) fn step(&mut self, stage: &Stage<'_>) {
        let fault = self.draw(stage);
        let pause = Duration::from_millis(self.rng.u64(50..700));
        self.history.push((now(), fault));
        self.carry_out(stage, fault);
        std::thread::sleep(pause);
    }

    /// Depends on the seed only, not on earlier events.
    fn draw(&mut self, stage: &Stage<'_>) -> Fault {
        let rng = &mut self.rng;
        let manager = rng.usize(..stage.managers.len());
        let member = rng.usize(..stage.cluster.members().len());
        // Mostly below the TTL of two seconds, sometimes well above.
        let millis = if rng.u8(..4) == 0 { rng.u64(2_000..4_500) } else { rng.u64(50..1_500) };
        match rng.u8(..22) {
            0..=2 => Fault::Freeze { manager, millis },
            3 | 4 => Fault::OneWay { manager, to_server: rng.bool(), millis },
            5 | 6 => Fault::Delay { manager, by: rng.u64(20..1_200), millis },
            7..=9 => Fault::Reset { manager },
            10..=12 => Fault::LoseAnswer { manager, silently: rng.bool() },
            13 => Fault::MuteWatches { manager, millis },
            14 | 15 => Fault::StopMember { member, millis },
            16 => Fault::StopAll { millis },
            17 => Fault::RestartMember { member },
            18 => Fault::RevokeLease { manager },
            19 | 20 => Fault::DeleteKey { pick: rng.u64(..) },
            _ => Fault::Compact,
        }
    }

    fn carry_out(&mut self, stage: &Stage<'_>, fault: Fault) {
        let sleep = |millis| std::thread::sleep(Duration::from_millis(millis));
        match fault {
            Fault::Freeze { manager, millis } => {
                stage.doors[manager].iter().for_each(Proxy::blackhole);
                sleep(millis);
            }
            Fault::OneWay { manager, to_server, millis } => {
                let way = if to_server { Way::ToServer } else { Way::ToClient };
                stage.doors[manager].iter().for_each(|door| door.hold(way));
                sleep(millis);
            }
            Fault::Delay { manager, by, millis } => {
                stage.doors[manager].iter().for_each(|door| door.delay(Duration::from_millis(by)));
                sleep(millis);
            }
            Fault::Reset { manager } => stage.doors[manager].iter().for_each(Proxy::reset_all),
            Fault::LoseAnswer { manager, silently } => {
                let loss = if silently { Loss::Silence } else { Loss::Reset };
                stage.doors[manager].iter().for_each(|door| door.lose_next_answer(loss));
                sleep(300);
            }
            Fault::MuteWatches { manager, millis } => {
                stage.doors[manager].iter().for_each(Proxy::mute_watches);
                sleep(millis);
            }
            Fault::StopMember { member, millis } => {
                stage.cluster.member(member).stop();
                sleep(millis);
                stage.cluster.member(member).cont();
            }
            Fault::StopAll { millis } => {
                stage.cluster.members().iter().for_each(|member| member.stop());
                sleep(millis);
                stage.cluster.members().iter().for_each(|member| member.cont());
            }
            Fault::RestartMember { member } => stage.cluster.member(member).restart(),
            Fault::RevokeLease { manager } => self.revoke(stage, manager),
            Fault::DeleteKey { pick } => self.delete(stage, pick),
            Fault::Compact => {
                if let Some(raw) = stage.raw() {
                    let compacted = raw.call(|mut client| async move {
                        let revision =
                            client.get("\0", None).await?.header().map_or(0, |header| header.revision());
                        client.compact(revision, None).await
                    });
                    // Refused if there is no new revision.
                    drop(compacted);
                }
            }
        }
        stage.doors.iter().flatten().for_each(Proxy::pass);
    }

    fn revoke(&mut self, stage: &Stage<'_>, manager: usize) {
        let lease = lease_of(&stage.managers[manager]);
        let Some(raw) = stage.raw().filter(|_| lease != 0) else { return };
        self.evictions.taken.push((format!("{lease:x}"), now()));
        // Not found if it has ended meanwhile.
        let _ = raw.call(move |mut client| async move { client.lease_revoke(lease).await });
    }

    fn delete(&mut self, stage: &Stage<'_>, pick: u64) {
        let Some(raw) = stage.raw() else { return };
        let sessions = format!("{}/~session/", stage.root);
        let prefix = format!("{}/", stage.root);
        let keys = raw.call(|mut client| async move {
            let options = etcd_client::GetOptions::new().with_prefix().with_keys_only();
            client.get(prefix, Some(options)).await
        });
        let Ok(keys) = keys else { return };
        let keys = keys.kvs().iter().filter_map(|kv| kv.key_str().ok());
        let keys: Vec<&str> = keys.filter(|key| !key.starts_with(&sessions)).collect();
        if keys.is_empty() {
            return;
        }
        let key = keys[(pick % keys.len() as u64) as usize].to_owned();
        self.evictions.taken.push((key.clone(), now()));
        let _ = raw.call(|mut client| async move { client.delete(key, None).await });
    }

    pub(super) fn into_evictions(self) -> Evictions {
        self.evictions
    }

    /// The number of faults of each kind.
    pub(super) fn summary(&self) -> String {
        let mut kinds = std::collections::BTreeMap::<String, u32>::new();
        for (_, fault) in &self.history {
            let text = format!("{fault:?}");
            *kinds.entry(text.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
        }
        format!("{} faults: {kinds:?}", self.history.len())
    }

    pub(super) fn history(&self) -> String {
        let lines: Vec<String> = self.history.iter().map(|(at, fault)| format!("{at} {fault:?}")).collect();
        lines.join("\n")
    }
}

impl Stage<'_> {
    /// A client that bypasses the proxies, at a member that answers. `None` while the cluster has no leader.
    fn raw(&self) -> Option<Raw> {
        self.cluster.leader().and_then(|leader| {
            let access = self.cluster.access().at([self.cluster.member(leader).endpoint()]);
            Raw::try_connect(&access).ok()
        })
    }

    /// Waits until all faults have ended and the cluster works.
    pub(super) fn heal(&self) {
        self.doors.iter().flatten().for_each(Proxy::pass);
        self.cluster.members().iter().for_each(|member| member.cont());
        for member in self.cluster.members() {
            eventually(SOON, "every member is healthy", || member.is_healthy());
        }
        let access: &Access = self.cluster.access();
        eventually_some(SOON, "the cluster answers", || Raw::try_connect(access).ok());
    }
}
