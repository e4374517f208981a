-- One row: a random number that tells this database from others. A gateway that finds another one has to read everything
-- anew, whatever the revision says.
CREATE TABLE registry_identity (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    value TEXT NOT NULL
);
