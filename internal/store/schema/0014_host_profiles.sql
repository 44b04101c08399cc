-- +goose Up
-- readers from: 12

-- What a host may get beside what its placements say: names of profiles, one a line. identity_used is when the
-- first call was made with the key of its newest identity: who comes with the key before it later is not that machine.
ALTER TABLE host ADD COLUMN profiles TEXT NOT NULL DEFAULT '';
ALTER TABLE host ADD COLUMN identity_used BIGINT NOT NULL DEFAULT 0;
