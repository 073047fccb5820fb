//! A cluster of etcd members.

use std::time::Duration;

use etcd_fixture::{Member, StartError};

use super::Proxy;
use super::raw::Raw;
use super::setup::{Access, Setup, User};
use super::wait::eventually_some;

/// A cluster; with one member it is the base of [`Etcd`](super::Etcd).
#[derive(Debug)]
pub(crate) struct Cluster {
    members: Vec<Member>,
    /// A proxy in front of each member, or none at all.
    peer_doors: Vec<Proxy>,
    access: Access,
}

impl Cluster {
    pub(crate) fn start(size: usize) -> Self {
        Setup::default().start_cluster(size)
    }

    pub(super) fn try_start(setup: &Setup, size: usize) -> Result<Self, StartError> {
        let mut members: Vec<Member> = (0..size).map(|n| Member::new(&format!("m{n}"))).collect();
        let mut peer_doors = Vec::new();
        for member in &mut members {
            setup.apply_to(member);
            if setup.peer_doors {
                let door = Proxy::for_peers(member.peer_address().parse().expect("an address"));
                member.advertise_peer(door.endpoint());
                peer_doors.push(door);
            }
        }
        etcd_fixture::start(&members)?;
        let access = setup.access(members.iter().map(Member::endpoint).collect());
        Ok(Self { members, peer_doors, access })
    }

    /// Turns authentication on, if there are users.
    pub(super) fn with_users(self, users: &[User]) -> Self {
        if !users.is_empty() {
            let nobody = Access { user: None, ..self.access.clone() };
            Raw::connect(&nobody).enable_auth(users);
        }
        self
    }

    pub(crate) fn member(&self, index: usize) -> &Member {
        &self.members[index]
    }

    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    /// The access of the user with all rights to all members.
    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    pub(crate) fn endpoints(&self) -> &[String] {
        &self.access.endpoints
    }

    /// The leader, if one of the answering members is.
    pub(crate) fn leader(&self) -> Option<usize> {
        self.members
            .iter()
            .position(|member| member.is_healthy() && member.metric("etcd_server_is_leader") == 1.0)
    }

    /// The members other than this one.
    pub(crate) fn others(&self, index: usize) -> impl Iterator<Item = &Member> {
        self.members.iter().enumerate().filter(move |(other, _)| *other != index).map(|(_, member)| member)
    }

    /// The access to the members other than this one, without a proxy.
    pub(crate) fn access_without(&self, index: usize) -> Access {
        self.access.at(self.others(index).map(Member::endpoint))
    }

    /// Waits for a leader, and returns its index.
    #[track_caller]
    pub(crate) fn wait_for_leader(&self) -> usize {
        eventually_some(Duration::from_secs(30), "a leader", || self.leader())
    }

    /// Cuts one member off from its peers only. The cluster must have been started with
    /// [`peer_doors`](Setup::peer_doors).
    pub(crate) fn isolate(&self, index: usize) {
        let name = self.members[index].name().to_owned();
        let raw = Raw::connect(&self.access);
        let list = raw.must(|mut client| async move { client.member_list().await });
        let member =
            list.members().iter().find(|member| member.name() == name).expect("a member with that name");
        for other in 0..self.members.len() {
            let door = self.peer_door(other);
            if other == index {
                door.blackhole();
            } else {
                door.cut(member.id());
            }
        }
    }

    /// Breaks the connections on which one member sends to its peers: nothing is delivered for a while, and data in
    /// flight is lost. The cluster must have been started with [`peer_doors`](Setup::peer_doors).
    ///
    /// A member receives from its peers on connections that it opens itself, so the data that this one sends passes
    /// through its own proxy.
    pub(crate) fn break_peers_of(&self, index: usize, time: Duration) {
        let door = self.peer_door(index);
        door.blackhole();
        std::thread::sleep(time);
        door.reset_all();
        door.pass();
    }

    fn peer_door(&self, index: usize) -> &Proxy {
        self.peer_doors.get(index).expect("the members have proxies for peers")
    }
}
