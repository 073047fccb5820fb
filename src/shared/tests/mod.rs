mod deadline;
mod holds;
mod queue;
