//! Several members that form one etcd.

use super::etcd::{Access, Member, Setup, StartError, User};
use super::raw::Raw;

/// A cluster; with one member, what is behind [`Etcd`](super::Etcd).
#[derive(Debug)]
pub(crate) struct Cluster {
    members: Vec<Member>,
    access: Access,
}

impl Cluster {
    pub(crate) fn start(size: usize) -> Self {
        Setup::default().start_cluster(size)
    }

    pub(super) fn try_start(setup: &Setup, size: usize) -> Result<Self, StartError> {
        let members: Vec<Member> = (0..size).map(|n| Member::new(format!("m{n}"), setup)).collect();
        let all = members.iter().map(Member::in_cluster).collect::<Vec<_>>().join(",");
        for member in &members {
            member.spawn(&all);
        }
        for member in &members {
            member.wait_ready()?;
        }
        let access = setup.access(members.iter().map(Member::endpoint).collect());
        Ok(Self { members, access })
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

    /// How the user that may do everything reaches all members.
    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    pub(crate) fn endpoints(&self) -> &[String] {
        &self.access.endpoints
    }

    /// The member that leads, if one of those that answer does.
    pub(crate) fn leader(&self) -> Option<usize> {
        self.members
            .iter()
            .position(|member| member.is_healthy() && member.metric("etcd_server_is_leader") == 1.0)
    }
}
