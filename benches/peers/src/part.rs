//! What one process of a contestant has to do.

use crate::Who;
use crate::rows::Shape;

/// The work of one process.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) who: Who,
    pub(crate) shape: Shape,
    pub(crate) endpoints: Vec<String>,
    pub(crate) prefix: String,
}

impl Part {
    /// The names that a worker locks in turn.
    pub(crate) fn names(&self, worker: usize) -> Vec<String> {
        let name = |n| if self.shape.is_shared() { "shared".into() } else { format!("{worker}-{n}") };
        (0..self.shape.names()).map(name).collect()
    }
}
