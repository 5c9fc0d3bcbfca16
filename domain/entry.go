package domain

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"accountledger/eventstore"
	"accountledger/eventstore/seal"
)

// Actor is who caused an event: the authenticated caller.
type Actor struct {
	Kind   string `json:"kind"` // api-key, oauth2, system, import
	ID     string `json:"id"`
	Client string `json:"client,omitzero"` // the application that acted for the caller
}

func (a Actor) String() string { return a.Kind + ":" + a.ID }

// Metadata says who caused an event, by which command, and when in the world.
// None of it is personal.
type Metadata struct {
	Actor         Actor     `json:"actor"`
	CommandID     string    `json:"commandId,omitzero"`     // of the request that may be repeated
	CorrelationID string    `json:"correlationId,omitzero"` // of everything one request caused
	CausationID   string    `json:"causationId,omitzero"`   // the event that caused this one
	EffectiveTime time.Time `json:"effectiveTime,omitzero"` // when it became true, if not when recorded
	ReasonCode    string    `json:"reasonCode,omitzero"`

	// CombinedSubs are the accounts that were part of the event's account, by
	// merging, when it happened; separated by spaces.
	CombinedSubs string `json:"combinedSubs,omitzero"`

	// Traceparent is where the request stands in its trace, as W3C Trace
	// Context writes it, for what follows the event to join. It is made of
	// random ids, and absent where the request was not sampled.
	Traceparent string `json:"traceparent,omitzero"`

	// Request tells a repeated request from another one under the same command
	// id, where requests hold nothing personal: in the configuration.
	Request string `json:"request,omitzero"`

	// requestHash does so everywhere else. A hash of a request tests guesses at
	// what was in it, so it is personal and travels with the sealed part.
	requestHash string
}

// WithRequest returns m for a command that may be repeated under id as long
// as the request, of which hash is a digest, is the same.
func (m Metadata) WithRequest(id, hash string) Metadata {
	m.CommandID, m.requestHash = id, hash
	return m
}

// Entry is one event of the log, opened and decoded.
type Entry struct {
	ID       uuid.UUID
	Type     string // current, after upcasting; see CurrentType
	Stream   string
	Revision eventstore.Revision
	Position eventstore.Position
	Time     time.Time // when it was recorded
	Meta     Metadata
	Event    Event
	Erased   bool // its personal fields are gone

	keyID      eventstore.KeyID
	storedType string // what the sealed part is bound to; "": Type
}

// OccurredTime is when x became true in the world: its effective time, or
// else the time of its recording.
func (x Entry) OccurredTime() time.Time {
	if !x.Meta.EffectiveTime.IsZero() {
		return x.Meta.EffectiveTime.UTC()
	}
	return x.Time
}

// Sub is the account x belongs to, or "" for a change of configuration.
func (x Entry) Sub() string {
	sub, ok := strings.CutPrefix(x.Stream, accountPrefix)
	if !ok {
		return ""
	}
	return sub
}

// Data is x's event as one JSON object, clear and personal members together.
func (x Entry) Data() (jsontext.Value, error) {
	data, err := json.Marshal(x.Event, json.Deterministic(true))
	return data, err
}

// Codec turns events into what the log holds and back. It is where personal
// data is sealed and opened, once for every backend.
type Codec struct{ Keys *seal.Keys }

// encode seals x's event under key for its place in its stream. An event with
// nothing personal about it gets no sealed part; one without a key, because it
// is a change of configuration, cannot have any.
func (c Codec) encode(x Entry, key eventstore.KeyID) (eventstore.Event, error) {
	e := eventstore.Event{ID: x.ID, Type: x.Type, Actor: x.Meta.Actor.String()}
	if key == (eventstore.KeyID{}) {
		x.Meta.Request = x.Meta.requestHash
	}
	var err error
	if e.Clear, err = encodeClear(x.Event, x.Meta); err != nil {
		return e, fmt.Errorf("domain: encode %s: %w", x.Type, err)
	}
	if len(e.Clear) > eventstore.MaxClear {
		return e, refuse(CodeTooLarge, "What is not personal about one change may have at most %d bytes of JSON.", eventstore.MaxClear)
	}
	if _, erased := x.Event.(AccountErased); erased || key == (eventstore.KeyID{}) {
		return e, nil // what ends an account is not sealed under the key that ends with it
	}
	personal, err := encodePersonal(x.Event, x.Meta)
	if err != nil {
		return e, fmt.Errorf("domain: encode %s: %T", x.Type, err)
	}
	if personal != nil {
		e.KeyID = key
		e.Sealed, err = c.Keys.Seal(key, x.place(), personal)
	}
	return e, err
}

// place is what the sealed part of x is bound to.
func (x Entry) place() seal.Context {
	return seal.Context{EventID: x.ID, Stream: x.Stream, Revision: x.Revision, Type: cmp.Or(x.storedType, x.Type)}
}

// Decode opens and decodes what the log holds. Of an event whose personal
// part was erased, or whose key was destroyed, it gives the clear fields.
func (c Codec) Decode(rec eventstore.Recorded) (Entry, error) {
	x := Entry{
		ID: rec.ID, Type: CurrentType(rec.Type), storedType: rec.Type, Stream: rec.Stream, Revision: rec.Revision, Position: rec.Position,
		Time: rec.Time, Erased: rec.Erased(), keyID: rec.KeyID,
	}
	var personal []byte
	var err error
	if rec.Sealed != nil {
		personal, err = c.Keys.Open(rec.KeyID, x.place(), rec.Sealed)
		if errors.Is(err, seal.ErrErased) {
			x.Erased, err = true, nil
		}
		if err != nil {
			return x, fmt.Errorf("domain: open %s at position %d: %w", rec.Type, rec.Position, err)
		}
	}
	if x.Event, x.Meta, err = DecodeEvent(rec.Type, rec.Clear, personal); err != nil {
		return x, fmt.Errorf("%w (position %d)", err, rec.Position)
	}
	if x.Meta.Request != "" {
		x.Meta.requestHash = x.Meta.Request
	}
	return x, nil
}
