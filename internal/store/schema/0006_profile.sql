-- +goose Up

-- A version of a profile is never changed; the one in force is the newest. A retired profile has a newest version
-- whose state says so, and issues nothing.
CREATE TABLE profile (
    name TEXT NOT NULL,
    version BIGINT NOT NULL,
    state TEXT NOT NULL,
    document TEXT NOT NULL,
    saved_by TEXT NOT NULL,
    saved_at BIGINT NOT NULL,
    PRIMARY KEY (name, version)
);
