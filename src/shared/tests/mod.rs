mod deadline;
mod hold_table;
mod message_queue;
mod models;
mod tickets;
