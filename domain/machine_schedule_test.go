package domain

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"pgregory.net/rapid"
)

// The machine's commands on schedules, deletions and erasures.

func (c *machine) plan(t *rapid.T, sub string) (Command, change) {
	id, kind := c.id("s"), draw(t, "kind", ScheduleKinds...)
	s := modelSchedule{kind: kind, due: c.w.now.Add(draw(t, "in", 30*time.Minute, 2*time.Hour, 30*time.Hour, -time.Minute)), state: SchedulePending}
	p := PlanSchedule{ScheduleID: id, Kind: kind, DueTime: s.due}
	switch kind {
	case ScheduleReminder:
		s.period = draw(t, "every", 0, 24*time.Hour)
		p.PeriodSeconds = int64(s.period / time.Second)
	case ScheduleStatusChange:
		p.TargetStatus = StatusDeclined
	}
	return p, func(m *model) error {
		a, err := m.open(sub)
		if err != nil || !s.due.After(m.now) {
			return errModel
		}
		a.schedules[id] = s
		return nil
	}
}

// schedule draws a schedule of the account: its key in the model, and its id.
func (c *machine) schedule(t *rapid.T, sub string) (key, id string) {
	key = draw(t, "schedule", append(slices.Sorted(maps.Keys(c.m.accounts[sub].schedules)), "none")...)
	for _, s := range c.w.account(sub).Schedules {
		if cmp.Or(s.SetupID, s.ScheduleID) == key {
			return key, s.ScheduleID
		}
	}
	return key, key
}

func (c *machine) postpone(t *rapid.T, sub string) (Command, change) {
	key, id := c.schedule(t, sub)
	due := draw(t, "to", c.w.now.Add(time.Hour), c.w.now.Add(40*time.Hour), c.w.now.Add(-time.Hour), c.m.accounts[sub].schedules[key].due)
	return PostponeSchedule{id, due}, func(m *model) error {
		a, err := m.there(sub)
		if err != nil {
			return err
		}
		s := a.schedules[key]
		if s.state != SchedulePending || !due.Equal(s.due) && !due.After(m.now) {
			return errModel
		}
		s.due = due
		a.schedules[key] = s
		return nil
	}
}

func (c *machine) cancel(t *rapid.T, sub string) (Command, change) {
	key, id := c.schedule(t, sub)
	return CancelSchedule{id}, func(m *model) error {
		a, err := m.there(sub)
		if err != nil {
			return err
		}
		switch s := a.schedules[key]; {
		case s.state == ScheduleAborted:
		case s.state != SchedulePending:
			return errModel
		case key == a.end:
			a.become(a.before)
		default:
			a.cancel("", func(id string, _ modelSchedule) bool { return id == key })
		}
		return nil
	}
}

func (c *machine) execute(t *rapid.T, sub string) (Command, change) {
	key, id := c.schedule(t, sub)
	due := c.m.accounts[sub].schedules[key].due
	off := draw(t, "off", 0, 0, 0, time.Second)
	return ExecuteSchedule{id, due.Add(off)}, func(m *model) error {
		if m.accounts[sub].erased {
			return errModel
		}
		if off == 0 {
			m.execute(sub, key)
		}
		return nil
	}
}

func (c *machine) delete(t *rapid.T, sub string) (Command, change) {
	id, grace := c.id("d"), draw(t, "grace", 0, time.Hour, 48*time.Hour, -time.Hour)
	return ScheduleAccountDeletion{id, grace}, func(m *model) error {
		a, err := m.there(sub)
		if err != nil || grace < 0 {
			return errModel
		}
		if a.status != StatusDeleted {
			a.schedules[id] = modelSchedule{kind: ScheduleDeletion, due: m.now.Add(grace), state: SchedulePending}
			a.end, a.before, a.status = id, a.status, StatusDeleted
		}
		return nil
	}
}

func (c *machine) restore(_ *rapid.T, sub string) (Command, change) {
	return CancelAccountDeletion{}, func(m *model) error {
		a, err := m.there(sub)
		if err != nil || a.end == "" {
			return errModel
		}
		a.become(a.before)
		return nil
	}
}

func (c *machine) erase(_ *rapid.T, sub string) (Command, change) {
	return EraseAccount{}, func(m *model) error {
		if _, err := m.there(sub); err != nil {
			return err
		}
		m.erase(sub)
		return nil
	}
}
