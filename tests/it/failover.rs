//! A standby takes over.
