-- +goose Up

-- One row for each chain: where it ends. A compare-and-set on it keeps a chain from forking.
CREATE TABLE audit_head (
  node TEXT NOT NULL PRIMARY KEY,
  seq BIGINT NOT NULL,
  hash BYTEA NOT NULL
);

-- Events. hash covers every other column, prev the event before it in the same chain.
CREATE TABLE audit_event (
  node TEXT NOT NULL,
  seq BIGINT NOT NULL,
  time BIGINT NOT NULL,
  actor TEXT NOT NULL,
  action TEXT NOT NULL,
  object TEXT NOT NULL,
  detail TEXT NOT NULL,
  prev BYTEA NOT NULL,
  hash BYTEA NOT NULL,
  PRIMARY KEY (node, seq)
);

CREATE INDEX audit_event_time ON audit_event (time, node, seq);
CREATE INDEX audit_event_object ON audit_event (object, time, node, seq);

-- Where a chain begins after events were pruned: seq and hash of the last event that was removed.
CREATE TABLE audit_base (
  node TEXT NOT NULL PRIMARY KEY,
  seq BIGINT NOT NULL,
  hash BYTEA NOT NULL
);

-- Signed statements over the heads of all chains, each naming the one before it.
CREATE TABLE audit_checkpoint (
  number BIGINT NOT NULL PRIMARY KEY,
  time BIGINT NOT NULL,
  body BYTEA NOT NULL,
  hash BYTEA NOT NULL
);
