-- One schema for SQLite and PostgreSQL: types and syntax that both have.

-- One row: the number of the last change. Whoever changes a device takes a number first, and so holds this row until
-- the change is there: numbers become visible in their order, and a reader that has seen one has seen those below it.
CREATE TABLE revision (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    value BIGINT NOT NULL
);
INSERT INTO revision (id, value) VALUES (1, 0);

CREATE TABLE device (
    id TEXT NOT NULL PRIMARY KEY,
    -- Of its last change.
    revision BIGINT NOT NULL UNIQUE,
    -- A removed one stays as a row without anything in it, so that gateways learn of it.
    state TEXT NOT NULL CHECK (state IN ('enabled', 'disabled', 'banned', 'removed')),
    -- Seconds since 1970.
    banned_until BIGINT,
    -- A JSON array of strings, and a JSON object.
    device_groups TEXT NOT NULL,
    attributes TEXT NOT NULL,
    psk_identity TEXT UNIQUE,
    -- Hexadecimal.
    psk_key TEXT,
    password_hash TEXT,
    -- Seconds since 1970.
    changed_at BIGINT NOT NULL
);

-- SHA-256 of a certificate or of a public key, in lower-case hexadecimal; of one device at most.
CREATE TABLE pin (
    fingerprint TEXT NOT NULL PRIMARY KEY,
    device_id TEXT NOT NULL REFERENCES device (id)
);
CREATE INDEX pin_device ON pin (device_id);
