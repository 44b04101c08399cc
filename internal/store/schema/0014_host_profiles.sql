-- +goose Up
-- readers from: 12

-- What a host may get beside what its placements say: names of profiles, one a line. identity_used is 1 once a call was made
-- with the key of its newest identity: then who has that machine's earlier key is not that machine as it is now.
ALTER TABLE host ADD COLUMN profiles TEXT NOT NULL DEFAULT '';
ALTER TABLE host ADD COLUMN identity_used BIGINT NOT NULL DEFAULT 0;
