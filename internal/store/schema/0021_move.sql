-- +goose Up
-- readers from: 12

-- Where this database stands in an authority's move from one database to another; at most one row, named here. id is the move's,
-- the same on both sides; peer is the other side in words, without a secret. No row: it never took part in one.
CREATE TABLE move_mark (
    name TEXT NOT NULL PRIMARY KEY,
    id TEXT NOT NULL,
    state TEXT NOT NULL,
    peer TEXT NOT NULL,
    changed_at BIGINT NOT NULL
);

-- How far each table has come, on the side that is filled: the key of the last row as JSON, empty before the first.
CREATE TABLE move_table (
    name TEXT NOT NULL PRIMARY KEY,
    last_key TEXT NOT NULL,
    copied BIGINT NOT NULL,
    complete BIGINT NOT NULL
);
