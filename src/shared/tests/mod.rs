mod deadline;
mod holds;
mod models;
mod queue;
