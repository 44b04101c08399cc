-- +goose Up
-- readers from: 12

-- Staged changes over the hosts of a pool. spec and plan are JSON: what was asked for, and what is made and done for it by
-- now. stage, wave and moved_at say how far it is; backwards is 1 while it is undone.
CREATE TABLE rollout (
    id TEXT NOT NULL PRIMARY KEY,
    number BIGINT NOT NULL UNIQUE,
    pool TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    backwards BIGINT NOT NULL,
    stage TEXT NOT NULL,
    wave BIGINT NOT NULL,
    moved_at BIGINT NOT NULL,
    spec TEXT NOT NULL,
    plan TEXT NOT NULL,
    message TEXT NOT NULL,
    actor TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    ended_at BIGINT NOT NULL
);

CREATE UNIQUE INDEX rollout_running ON rollout (pool) WHERE ended_at = 0;

CREATE INDEX rollout_by_end ON rollout (ended_at) WHERE ended_at > 0;

-- The hosts of a rollout, each in a wave. stage is the last stage that the host has fulfilled, counted from 1; because is why it
-- is not waited for, empty where it is.
CREATE TABLE rollout_host (
    rollout TEXT NOT NULL,
    host TEXT NOT NULL,
    wave BIGINT NOT NULL,
    stage BIGINT NOT NULL,
    message TEXT NOT NULL,
    because TEXT NOT NULL,
    before_json TEXT NOT NULL,
    changed_at BIGINT NOT NULL,
    PRIMARY KEY (rollout, host)
);

CREATE INDEX rollout_host_by_wave ON rollout_host (rollout, wave, stage);
