//! Defects that tests can switch on, to show that the simulation finds them.
//!
//! Outside tests, [`mutant!`] is the constant `false` and the list does not exist, so no defect is compiled into a
//! release.

/// Whether a defect of [`Mutant`] is switched on.
#[cfg(test)]
macro_rules! mutant {
    ($name:ident) => {
        $crate::protocol::mutants::Mutant::$name.is_active()
    };
}

/// Outside tests no defect exists.
#[cfg(not(test))]
macro_rules! mutant {
    ($name:ident) => {
        false
    };
}

pub(crate) use mutant;

#[cfg(test)]
pub(crate) use listed::Mutant;

#[cfg(test)]
mod listed {
    use std::cell::Cell;

    /// A defect of the protocol.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Mutant {
        /// The deadline is counted from the receipt of the answer, not from the send of the renewal.
        DeadlineFromReceipt,
        /// Answers that arrive at or after the deadline are handled before the deadline.
        AnswersBeforeDeadline,
        /// Renewals answered by a member that has missed an election count.
        StaleTermBelieved,
        /// Requests do not compare the epoch.
        EpochNotCompared,
        /// An unanswered request is regarded as not carried out.
        UnknownTakenForNotDone,
        /// A key that a delayed request could put again is deleted without a new epoch.
        DeletedWithoutFence,
        /// Every watch of predecessors is trusted to be complete.
        PromotedWithoutRead,
        /// A reported deletion that predates the last read counts.
        OldDeletionBelieved,
        /// A watch that is confirmed after another read was sent is trusted.
        LateWatchBelieved,
        /// A contender whose own key is deleted together with its predecessor takes the lock.
        OwnEndOverlooked,
        /// Reads test that our key exists, not that its create revision is ours.
        ExistenceForCreateRevision,
        /// Events missed before a watch was confirmed, or while its stream was broken, are never read up on.
        MissedEventsIgnored,
        /// A contender far back that hears of its milestone's deletion does not come closer.
        MilestoneIgnored,
        /// Far back, a deletion of the milestone before its watch was confirmed is not looked for.
        MilestoneGapIgnored,
        /// A check of the milestone that was sent before its deletion was reported counts as a read of the predecessors.
        PassedMilestoneBelieved,
        /// A ticket that is abandoned after its grant keeps the lock.
        AbandonIgnoredAfterGrant,
        /// The next local waiter enters with a key that is still to be deleted.
        KeyReusedAtHandOver,
        /// A key named in an unanswered request is reused, so a late delete hits its new use.
        KeyReusedUnanswered,
        /// A try is sent together with the delete of a stale key of ours, and finds that key.
        TryBesideOwnDelete,
        /// A try is refused because of a write that was sent before the call.
        TryRefusedByOldNews,
        /// "No space" is regarded as proof that nothing was carried out.
        NoSpaceTakenForNotDone,
        /// A key that a delayed request could put again is not deleted before there is a new epoch, and blocks others.
        ReleaseWaitsForFence,
        /// A write deletes all stale keys at once, whatever the limit of operations.
        DeletesNotCut,
        /// A release does not compare the create revision.
        DeletedByNameAlone,
        /// A key is reused after a delete that does not compare its create revision.
        KeyReusedAfterPlainDelete,
        /// The reported deletion of an earlier use of a key counts for its current use.
        ReplayedDeletionBelieved,
        /// A read that is older than what is known of the contender counts.
        StaleReadBelieved,
        /// A read that predates the confirmation of a reopened watch closes its gap.
        GapClosedByStaleRead,
        /// A key that was reported deleted by somebody else is not deleted once more.
        DeletedKeyForgotten,
        /// The highest raft term of earlier sessions counts for the next session.
        TermOutlivesSession,
        /// A shared contender does not wait for the exclusive ones before it.
        WriterOvertaken,
        /// Shared contenders that one commit put do not count each other where permits are taken before them.
        SiblingsOverlooked,
        /// A look at others covers exclusive contenders only.
        OthersOverlooked,
        /// The watch of the predecessors covers exclusive ones only.
        OthersUnwatched,
        /// Only the own limit of a contender counts, not those of the others.
        OwnLimitOnly,
        /// A try of a permit is put whoever came after the look.
        TryPutWithoutCompare,
        /// The answer to a look with a limit is regarded as all there is.
        CutLookBelieved,
        /// A released shared key is deleted by the name of an exclusive one.
        SharedReleasedAsExclusive,
        /// The session key is watched from a future revision.
        SessionWatchedFromFuture,
        /// A holder's request compares that its key exists, not that the create revision is the hold's.
        FencedByExistence,
        /// After an unanswered write of a holder the epoch does not move.
        FencedUnderOldEpoch,
        /// The failure that is known last decides, not the write that was sent last.
        FencedEpochTakenBack,
        /// An unanswered write of a holder is repeated.
        FencedRepeated,
        /// An observer publishes what a read shows, however old that is.
        ObserverBelievesStaleRead,
        /// An observer whose read is in flight ignores what is reported meanwhile.
        ObserverForgetsWhileReading,
    }

    thread_local! {
        static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    impl Mutant {
        pub(crate) fn is_active(self) -> bool {
            ACTIVE.get() == Some(self)
        }

        /// Runs `run` with this defect, on this thread.
        pub(crate) fn during<T>(self, run: impl FnOnce() -> T) -> T {
            ACTIVE.set(Some(self));
            let result = run();
            ACTIVE.set(None);
            result
        }
    }
}
