-- +goose Up
-- readers from: 12

-- The process that writes as a node: each of its transactions holds the number that it began with against this one. 0 is that of
-- processes from before this column, which hold nothing against it; -1 is nobody's: the node is gone.
ALTER TABLE write_mark ADD COLUMN fence BIGINT NOT NULL DEFAULT 0;
