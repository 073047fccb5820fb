mod deadline;
mod hold_table;
mod models;
mod queue;
