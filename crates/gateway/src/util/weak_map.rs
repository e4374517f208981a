//! A map of shared values. A value lives as long as one of its owners holds it.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Weak references by key.
pub(crate) struct WeakMap<K, V>(Mutex<HashMap<K, Weak<V>>>);

impl<K: Hash + Eq, V> WeakMap<K, V> {
    /// The value of this key. Creates it if no owner holds it.
    pub(crate) fn get_or_insert_with(&self, key: K, make: impl FnOnce() -> V) -> Arc<V> {
        let mut values = self.0.lock();
        values.retain(|_, value| value.strong_count() > 0);
        if let Some(value) = values.get(&key).and_then(Weak::upgrade) {
            return value;
        }
        let value = Arc::new(make());
        values.insert(key, Arc::downgrade(&value));
        value
    }

    /// All values that have an owner.
    pub(crate) fn values(&self) -> Vec<Arc<V>> {
        let values = self.0.lock();
        values.values().filter_map(Weak::upgrade).collect()
    }
}

impl<K, V> Default for WeakMap<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K, V> fmt::Debug for WeakMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakMap")
    }
}
