package domain

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"time"

	"accountledger/eventstore"
)

// Config is the configuration that the ledger's operators have set. It is the
// fold of one stream, applies to all accounts, and stays in memory.
type Config struct {
	Roles          map[string]Role          // by Role.Role
	GroupTypes     map[string]GroupType     // by GroupType.GroupType
	Groups         map[string]Group         // by Group.GroupID; a tree
	ScheduleSetups map[string]ScheduleSetup // by ScheduleSetup.SetupID
	Fields         map[string]Field         // by Field.FieldKey
	Consents       map[string]Consent       // by Consent.ConsentID

	Revision eventstore.Revision // of its stream
	Position eventstore.Position // of its last event

	hidden   Hidden
	commands commands
}

// ConfigStream is the stream that holds the ledger's configuration.
const ConfigStream = "configuration"

// NewConfig returns the configuration before its first event: the system's own
// roles, group types and groups.
func NewConfig() *Config {
	c := &Config{Roles: map[string]Role{}, GroupTypes: map[string]GroupType{}, Groups: map[string]Group{},
		Fields: map[string]Field{}, Consents: map[string]Consent{},
		ScheduleSetups: map[string]ScheduleSetup{}, Revision: eventstore.NoStream}
	for _, r := range systemRoles {
		c.Roles[r.Role] = r
	}
	for _, t := range systemGroupTypes {
		c.GroupTypes[t.GroupType] = t
	}
	for _, g := range systemGroups {
		c.Groups[g.GroupID] = g
	}
	return c
}

// clone returns a copy of c that may evolve. It copies the maps; their values are
// shared.
func (c *Config) clone() *Config {
	d := *c
	d.Roles, d.GroupTypes, d.Groups = maps.Clone(c.Roles), maps.Clone(c.GroupTypes), maps.Clone(c.Groups)
	d.ScheduleSetups = maps.Clone(c.ScheduleSetups)
	d.Fields, d.Consents = maps.Clone(c.Fields), maps.Clone(c.Consents)
	return &d
}

func (c *Config) head() head {
	return head{stream: ConfigStream, revision: c.Revision, position: c.Position, commands: c.commands, repeatable: true}
}

func (c *Config) with(entries ...Entry) *Config {
	after := c.clone()
	for _, x := range entries {
		after.Evolve(x)
	}
	return after
}

func (*Config) initial() *Config { return NewConfig() }

// configEvent is an event of the configuration's stream.
type configEvent interface {
	Event
	// evolve applies the event, whose entry is x, to c. Nothing else uses c yet.
	// The values in c's maps are shared with older configurations, so evolve
	// replaces them and never changes them.
	evolve(c *Config, x Entry)
}

// Evolve applies x to c, which nothing else may use yet. It never refuses: x has
// happened.
func (c *Config) Evolve(x Entry) {
	e, ok := x.Event.(configEvent)
	if !ok {
		panic("domain: " + x.Type + " does not belong to the configuration")
	}
	e.evolve(c, x)
	c.Revision, c.Position = x.Revision, x.Position
	c.commands = c.commands.with(x)
}

// ConfigCommand is a command on the configuration.
type ConfigCommand interface {
	// decide returns the events it causes, none if it changes nothing.
	decide(c *Config, now time.Time) ([]Event, error)
	// revision returns the revision of the command's object: that of the last
	// event that changed it, or NoStream if it does not exist. The pipeline
	// compares If-Match with it.
	revision(c *Config) eventstore.Revision
}

// Census answers questions about all accounts together. Commands on one account
// never need it. The ledger asks while no account changes, and the answers
// include every event of the log.
type Census interface {
	// Members counts the memberships with a group and a role. An empty group or
	// role matches any; the role NoRole matches memberships without a role.
	Members(ctx context.Context, groupID, role string) (int64, error)

	// Accounts yields every account as it was at position at of the log, or
	// later. The ledger calls it while accounts change, because it takes time in
	// proportion to their number.
	Accounts(ctx context.Context) (at eventstore.Position, accounts iter.Seq2[Account, error], err error)
}

// surveyed is a ConfigCommand whose decision depends on the Census.
type surveyed interface {
	ConfigCommand
	// survey returns the command with the answers of the census filled in.
	survey(ctx context.Context, c *Config, census Census) (ConfigCommand, error)
}

// Config returns the current configuration. The caller must not change it.
func (l *Ledger) Config(ctx context.Context) (*Config, error) {
	if c := l.config.Load(); c != nil {
		return c, nil
	}
	l.configuring.Lock()
	defer l.configuring.Unlock()
	return l.loadConfig(ctx)
}

// loadConfig applies the events that the Config in memory does not have yet. The caller
// holds l.configuring for writing.
func (l *Ledger) loadConfig(ctx context.Context) (*Config, error) {
	before := l.config.Load()
	if before == nil {
		before = NewConfig()
	}
	c := before
	for x, err := range l.entries(ctx, ConfigStream, before.Revision+1) {
		if err != nil {
			return nil, err
		}
		if c == before {
			c = before.clone()
		}
		c.Evolve(x)
	}
	l.config.Store(c)
	return c, nil
}

// Configure carries out cmd on the configuration. The events are durable when
// it returns. A refusal is an *Error. No command on an account is under way
// while it decides and appends.
func (l *Ledger) Configure(ctx context.Context, r Request, cmd ConfigCommand) (Result[*Config], error) {
	return observed(ctx, l, cmd, r, func() (Result[*Config], error) {
		return retry(func() (Result[*Config], error) {
			seen, err := l.inspect(ctx, cmd)
			if err != nil {
				return Result[*Config]{}, err
			}
			l.configuring.Lock()
			defer l.configuring.Unlock()
			before, err := l.loadConfig(ctx)
			if err != nil {
				return Result[*Config]{}, err
			}
			return carryOut(ctx, l, order[*Config]{
				Request:  r,
				noun:     "object",
				revision: cmd.revision,
				decide: func(now time.Time, _ []*Config) ([][]Event, error) {
					cmd, err := l.informed(ctx, before, cmd, seen)
					if err != nil {
						return nil, err
					}
					events, err := cmd.decide(before, now)
					return [][]Event{events}, err
				},
				keep: func(c *Config) { l.config.Store(c) },
			}, []*Config{before})
		})
	})
}

// informed returns cmd with everything filled in that it must know about all
// accounts.
func (l *Ledger) informed(ctx context.Context, c *Config, cmd ConfigCommand, seen inspection) (_ ConfigCommand, err error) {
	if cmd, err = l.conclude(ctx, c, cmd, seen); err != nil {
		return nil, err
	}
	if s, ok := cmd.(surveyed); ok {
		if cmd, err = s.survey(ctx, c, l.census); err != nil {
			return nil, fmt.Errorf("domain: survey accounts: %w", err)
		}
	}
	return cmd, nil
}
