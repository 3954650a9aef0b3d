//! Jobs done by programs: real programs, started through the worker's own binary.

mod configured;
mod document;
mod endings;
mod environment;
mod kit;
mod launcher;
mod pipes;
mod stopping;
