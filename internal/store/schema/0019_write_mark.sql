-- +goose Up
-- readers from: 12

-- The number of the newest transaction of each node that reads at a standby: a state of the database that has the number has the
-- transaction.
CREATE TABLE write_mark (
    node TEXT NOT NULL PRIMARY KEY,
    number BIGINT NOT NULL
);

-- When a revocation, a hold or the end of a hold was recorded; 0 where that was before this column.
ALTER TABLE revocation ADD COLUMN changed_at BIGINT NOT NULL DEFAULT 0;
