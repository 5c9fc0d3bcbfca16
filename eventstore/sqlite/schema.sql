-- The log of an account ledger. Rows of events, streams and level-0 tiles are
-- written once. Rows that may be deleted are sealed parts (erasure), claims, and
-- checkpoints that a later one of the same minute replaces. Times are
-- microseconds since 1970 in UTC.

CREATE TABLE meta (
	ledger         TEXT    NOT NULL, -- id of the ledger; never changes
	origin         TEXT    NOT NULL, -- of the checkpoints: the name of the key that signs them
	claims_version INTEGER NOT NULL, -- of the rules that made the claims
	open           INTEGER NOT NULL  -- 1 until the log is closed: then there is a -wal file beside this one
) STRICT;

-- The sealed head: what the last transaction left. A start compares it with the
-- other tables. Only this ledger can make its mac.
CREATE TABLE head (
	id        INTEGER PRIMARY KEY CHECK (id = 1),
	size      INTEGER NOT NULL, -- number of events
	root      BLOB    NOT NULL, -- of the tree over them
	claims    BLOB    NOT NULL, -- digest of the tables claims and waiting
	watched   BLOB    NOT NULL, -- digest of the last events of the streams that decide who may do what
	slot      INTEGER NOT NULL, -- highest slot in a kid
	changes   INTEGER NOT NULL, -- of secrets in keys.db
	destroyed INTEGER NOT NULL, -- keys in keys.db
	server    BLOB    NOT NULL, -- position of the last event on the server that this log replicates; empty if there is none
	mac       BLOB    NOT NULL
) STRICT;

-- Streams are numbered in the order of their creation, so that events of new
-- streams are inserted at the end of the index on events.
CREATE TABLE streams (
	num  INTEGER PRIMARY KEY,
	name TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE events (
	position    INTEGER PRIMARY KEY, -- 1, 2, 3, ... without holes; leaf number position-1
	stream      INTEGER NOT NULL REFERENCES streams (num),
	revision    INTEGER NOT NULL,    -- 0, 1, 2, ... without holes in each stream
	time        INTEGER NOT NULL,
	id          BLOB NOT NULL,
	type        TEXT NOT NULL,
	actor       TEXT NOT NULL,
	clear       BLOB NOT NULL,
	prev        BLOB,                -- leaf hash of the stream's previous event; NULL at revision 0
	kid         BLOB,                -- NULL where the event has no sealed part
	sealed_hash BLOB,                -- SHA-256 of the sealed part, which may be gone
	leaf_hash   BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX events_stream ON events (stream, revision);

CREATE TABLE sealed (
	position INTEGER PRIMARY KEY REFERENCES events (position),
	bytes    BLOB NOT NULL
) STRICT;

CREATE TABLE claims (
	kind   TEXT NOT NULL,
	key    BLOB NOT NULL,
	stream INTEGER NOT NULL REFERENCES streams (num), -- who holds it
	PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID;

-- Claims of a key that another stream holds, in the order in which they get it.
-- They come from an older version, which compared keys differently.
CREATE TABLE waiting (
	kind   TEXT    NOT NULL,
	key    BLOB    NOT NULL,
	place  INTEGER NOT NULL,
	stream INTEGER NOT NULL REFERENCES streams (num),
	PRIMARY KEY (kind, key, place)
) STRICT, WITHOUT ROWID;

-- Hash tiles (C2SP tlog-tiles). A level-0 tile is inserted once it has all 256
-- hashes; a tile of a higher level is replaced as it grows.
CREATE TABLE tiles (
	level INTEGER NOT NULL,
	n     INTEGER NOT NULL,
	data  BLOB NOT NULL,
	PRIMARY KEY (level, n)
) STRICT, WITHOUT ROWID;

CREATE TABLE checkpoints (
	size INTEGER PRIMARY KEY,
	time INTEGER NOT NULL, -- of its last event
	note BLOB NOT NULL     -- signed
) STRICT;

CREATE TRIGGER events_update BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
CREATE TRIGGER events_delete BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;
CREATE TRIGGER streams_update BEFORE UPDATE ON streams BEGIN SELECT RAISE(ABORT, 'streams are never renamed'); END;
CREATE TRIGGER streams_delete BEFORE DELETE ON streams BEGIN SELECT RAISE(ABORT, 'streams are never deleted'); END;
CREATE TRIGGER sealed_update BEFORE UPDATE ON sealed BEGIN SELECT RAISE(ABORT, 'sealed parts are never changed'); END;
CREATE TRIGGER tiles_update BEFORE UPDATE ON tiles WHEN OLD.level = 0 BEGIN SELECT RAISE(ABORT, 'full tiles are never changed'); END;
CREATE TRIGGER tiles_delete BEFORE DELETE ON tiles BEGIN SELECT RAISE(ABORT, 'tiles are never deleted'); END;
