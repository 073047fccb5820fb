//! Defects that can be switched on in tests, to show that the simulation finds them.
//!
//! Outside tests [`mutant!`] is the constant `false` and the list does not exist, so no defect can be compiled into a
//! build that anybody uses.

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

pub(super) use mutant;

#[cfg(test)]
pub(crate) use listed::Mutant;

#[cfg(test)]
mod listed {
    use std::cell::Cell;

    /// A defect of the protocol.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Mutant {
        /// The deadline counts from when the answer came, not from when the renewal was sent.
        DeadlineFromReceipt,
        /// Answers that arrive with or after the deadline count before it.
        AnswersBeforeDeadline,
        /// A member that has missed an election is believed.
        StaleTermBelieved,
        /// Guarded requests leave the compare of the epoch out.
        EpochNotCompared,
        /// A request without an answer is taken for one that was not carried out.
        UnknownTakenForNotDone,
        /// A key that a delayed request could bring back is deleted without a new epoch.
        DeletedWithoutFence,
        /// A waiter takes the news of its watch for all the news, whatever may have been missed.
        PromotedWithoutRead,
        /// A waiter takes what it is told of the past for news.
        OldDeletionBelieved,
        /// A watch that stands long after the read is taken to begin where the read left off.
        LateWatchBelieved,
        /// A waiter that is told that its own key went together with the one before takes the lock.
        OwnEndOverlooked,
        /// It is tested that the key exists, not that it is the one that was put.
        ExistenceForCreateRevision,
        /// What may have been missed before a watch stood, or while it was broken, is never looked for.
        MissedEventsIgnored,
        /// A ticket that is given up after its grant keeps the lock.
        AbandonIgnoredAfterGrant,
        /// The next local thread takes over with the key of the one before.
        KeyReusedAtHandOver,
        /// A key is used again that a request without an answer names, so a late delete of the old one hits the new.
        KeyReusedUnanswered,
        /// A try leaves together with the delete of an earlier key of ours, and finds that key.
        TryBesideOwnDelete,
        /// A try is refused by an answer that is older than its question.
        TryRefusedByOldNews,
        /// "No space" is taken for an answer that says that nothing was done.
        NoSpaceTakenForNotDone,
        /// A key that a delayed request could bring back keeps others waiting until there is a new epoch.
        ReleaseWaitsForFence,
        /// A step takes all keys that must go, whatever the store allows.
        DeletesNotCut,
        /// A release does not compare the create revision.
        DeletedByNameAlone,
        /// A key is used again after a delete that does not compare its create revision.
        KeyReusedAfterPlainDelete,
        /// The end of an earlier use of a key is taken for the end of this one.
        ReplayedDeletionBelieved,
        /// An answer that is older than the key speaks for it.
        StaleReadBelieved,
        /// A key that is believed to be deleted is not deleted again.
        DeletedKeyForgotten,
        /// The highest term of earlier sessions counts for the next, whatever has become of the cluster.
        TermOutlivesSession,
        /// The session is watched from a revision that is still to come.
        SessionWatchedFromFuture,
    }

    thread_local! {
        static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    impl Mutant {
        pub(in super::super) fn is_active(self) -> bool {
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
