//! Pure: the hash that stands for a task's key.
//!
//! A held key is remembered by its hash alone, so that a million of them cost little. Two keys with the same one of 2^64,
//! under a seed that nobody outside knows, would be taken for one: among a million held keys that has a chance of one in
//! thirty million, and its worst is that one task of the other key overtakes a held one.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Makes the hashes; clones make the same ones.
#[derive(Clone, Debug, Default)]
pub struct KeyHasher(RandomState);

impl KeyHasher {
    /// The hash of a key.
    pub fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = self.0.build_hasher();
        hasher.write(key);
        hasher.finish()
    }
}
