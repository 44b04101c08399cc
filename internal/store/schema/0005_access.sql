-- +goose Up

-- Who may call: operators, nodes, hosts and agents. roles is a sorted, comma-separated list.
CREATE TABLE principal (
  id TEXT NOT NULL PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL,
  roles TEXT NOT NULL,
  disabled BIGINT NOT NULL,
  created BIGINT NOT NULL
);

-- Bearer tokens. Only the SHA-256 of a token is here; last_used is coarse.
CREATE TABLE access_token (
  id TEXT NOT NULL PRIMARY KEY,
  principal_id TEXT NOT NULL,
  label TEXT NOT NULL,
  hash BYTEA NOT NULL UNIQUE,
  created BIGINT NOT NULL,
  expires BIGINT NOT NULL,
  last_used BIGINT NOT NULL
);

CREATE INDEX access_token_principal ON access_token (principal_id, id);

-- Client certificates: the issuer's id and the SHA-256 of the subject's SPKI.
CREATE TABLE access_identity (
  issuer TEXT NOT NULL,
  spki BYTEA NOT NULL,
  principal_id TEXT NOT NULL,
  created BIGINT NOT NULL,
  PRIMARY KEY (issuer, spki)
);

CREATE INDEX access_identity_principal ON access_identity (principal_id);
