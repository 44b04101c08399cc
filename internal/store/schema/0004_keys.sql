-- +goose Up

-- The public keys to which data keys are wrapped: nodes, and the offline recovery recipient.
CREATE TABLE key_recipient (
  id TEXT NOT NULL PRIMARY KEY,
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  subsystems TEXT NOT NULL,
  public_key TEXT NOT NULL UNIQUE,
  created BIGINT NOT NULL
);

-- Which node vouches for which recipient. mac is made with a secret that only the node has, so that a row which somebody
-- else put or changed in key_recipient gets no keys.
CREATE TABLE key_endorsement (
  node TEXT NOT NULL,
  recipient_id TEXT NOT NULL,
  mac BYTEA NOT NULL,
  PRIMARY KEY (node, recipient_id)
);

-- Private keys, each encrypted with a data key of its own.
CREATE TABLE sealed_key (
  id TEXT NOT NULL PRIMARY KEY,
  purpose TEXT NOT NULL,
  owner TEXT NOT NULL,
  algorithm TEXT NOT NULL,
  spki BYTEA NOT NULL,
  ciphertext BYTEA NOT NULL,
  created BIGINT NOT NULL
);

CREATE INDEX sealed_key_owner ON sealed_key (owner, purpose);

-- The data key of one sealed key, encrypted to one recipient.
CREATE TABLE key_wrap (
  key_id TEXT NOT NULL,
  recipient_id TEXT NOT NULL,
  wrap BYTEA NOT NULL,
  created BIGINT NOT NULL,
  PRIMARY KEY (key_id, recipient_id)
);

CREATE INDEX key_wrap_recipient ON key_wrap (recipient_id);
