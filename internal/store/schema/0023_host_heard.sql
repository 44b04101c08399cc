-- +goose Up
-- readers from: 12

-- When an agent last called a node whose login at the database reads: such a login writes rows of its own alone, and a node that issues
-- takes them over into host_seen.
CREATE TABLE host_heard (
    node TEXT NOT NULL,
    host TEXT NOT NULL,
    seen_at BIGINT NOT NULL,
    PRIMARY KEY (node, host)
);
