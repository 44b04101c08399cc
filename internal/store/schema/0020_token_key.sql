-- +goose Up
-- readers from: 12

-- Private keys that lie in PKCS #11 tokens. uri is a PKCS #11 URI (RFC 7512) without what is a node's own: neither the path of a
-- library nor a PIN. A key is here or in sealed_key; their ids are of one kind.
CREATE TABLE token_key (
    id TEXT NOT NULL PRIMARY KEY,
    purpose TEXT NOT NULL,
    owner TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    spki BYTEA NOT NULL,
    uri TEXT NOT NULL,
    created BIGINT NOT NULL
);
