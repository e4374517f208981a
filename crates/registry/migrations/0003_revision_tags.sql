-- A random tag for each recent transaction, at its last revision. Copies of a database that were changed separately
-- have different tags at the same revision, so a gateway that finds another tag than before has to read everything anew.
CREATE TABLE revision_tag (
    revision BIGINT NOT NULL PRIMARY KEY,
    tag TEXT NOT NULL
);
