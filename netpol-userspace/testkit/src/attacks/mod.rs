//! The attacks, by what they abuse. Must never judge what they find by themselves: see `hostile`.

pub mod flows;
pub mod fragments;
pub mod icmp;
pub mod identity;
pub mod link;
pub mod owner;
pub mod shapes;
pub mod tenant;
pub mod tunnels;
