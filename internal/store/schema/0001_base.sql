-- +goose Up
CREATE TABLE once (
    caller       TEXT   NOT NULL,
    request_key  TEXT   NOT NULL,
    request_hash BYTEA  NOT NULL,
    response     BYTEA  NOT NULL,
    created_at   BIGINT NOT NULL,
    PRIMARY KEY (caller, request_key)
);
CREATE INDEX once_created_at ON once (created_at);

CREATE TABLE leases (
    name       TEXT   NOT NULL PRIMARY KEY,
    holder     TEXT   NOT NULL,
    epoch      BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE TABLE clock (
    name       TEXT   NOT NULL PRIMARY KEY,
    high_water BIGINT NOT NULL
);
