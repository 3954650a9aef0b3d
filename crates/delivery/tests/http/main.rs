//! HTTP push against receivers of every kind: good, slow, broken, hostile.

mod abuse;
mod answers;
mod fetch;
mod kit;
mod limits;
mod signing;
mod tls;
