package qemu

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// Event is what QEMU says by itself: WATCHDOG, RESET, SHUTDOWN, DEVICE_DELETED and others of its QMP reference.
type Event struct {
	Name string
	Data map[string]any
	Time time.Time // host clock, when it was received
}

// Reason is the "reason" of RESET and SHUTDOWN: "guest-reset", "guest-shutdown", "host-qmp-system-reset" ...
func (e Event) Reason() string {
	s, _ := e.Data["reason"].(string)
	return s
}

// events are a machine's QMP events since the first power on, in order, and how far they have been read.
type events struct {
	feed
	list []Event
	read int
}

func newEvents() *events { return &events{feed: newFeed()} }

// expect returns the first event not read yet that match accepts and counts it, and all before it, as read.
// With from >= 0 it looks from that index instead and leaves the reading position alone.
func (e *events) expect(timeout time.Duration, from int, what string, match func(Event) bool) (Event, error) {
	end := time.NewTimer(timeout)
	defer end.Stop()
	for {
		e.Lock()
		start := from
		if from < 0 {
			start = e.read
		}
		for i := start; i < len(e.list); i++ {
			if ev := e.list[i]; match(ev) {
				if from < 0 {
					e.read = i + 1
				}
				e.Unlock()
				return ev, nil
			}
		}
		changed, live := e.changed, e.live
		e.Unlock()
		if !live {
			return Event{}, fmt.Errorf("wait for event %s: %w", what, ErrEnded)
		}
		select {
		case <-changed:
		case <-end.C:
			return Event{}, fmt.Errorf("wait for event %s: %w after %v", what, ErrTimeout, timeout)
		}
	}
}

func (e *events) count() int {
	e.Lock()
	defer e.Unlock()
	return len(e.list)
}

// qmp is one connection of the QEMU machine protocol (JSON objects over a stream; docs/interop/qmp-spec of QEMU).
type qmp struct {
	conn   io.ReadWriteCloser
	mu     sync.Mutex
	next   int
	wait   map[int]chan qmpReply // nil once the connection is gone
	gone   chan struct{}         // closed when no more events will come
	events *events
}

type qmpReply struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// newQMP takes over conn. The caller negotiates with `qmp_capabilities` and closes conn at the end.
func newQMP(conn io.ReadWriteCloser, ev *events) *qmp {
	q := &qmp{conn: conn, wait: map[int]chan qmpReply{}, gone: make(chan struct{}), events: ev}
	go q.receive()
	return q
}

func (q *qmp) receive() {
	dec := json.NewDecoder(q.conn)
	for {
		var msg struct {
			qmpReply
			ID    *int           `json:"id"`
			Event string         `json:"event"`
			Data  map[string]any `json:"data"`
		}
		if err := dec.Decode(&msg); err != nil {
			break
		}
		switch {
		case msg.Event != "":
			q.events.change(func() {
				q.events.list = append(q.events.list, Event{Name: msg.Event, Data: msg.Data, Time: time.Now()})
			})
		case msg.ID != nil:
			q.mu.Lock()
			ch := q.wait[*msg.ID]
			delete(q.wait, *msg.ID)
			q.mu.Unlock()
			if ch != nil {
				ch <- msg.qmpReply
			}
		}
	}
	q.mu.Lock()
	for _, ch := range q.wait {
		close(ch)
	}
	q.wait = nil
	q.mu.Unlock()
	close(q.gone)
}

// call executes one command and waits for its answer.
func (q *qmp) call(command string, arguments any) (json.RawMessage, error) {
	ch := make(chan qmpReply, 1)
	q.mu.Lock()
	if q.wait == nil {
		q.mu.Unlock()
		return nil, fmt.Errorf("qmp %s: %w", command, ErrEnded)
	}
	q.next++
	id := q.next
	q.wait[id] = ch
	msg := map[string]any{"execute": command, "id": id}
	if arguments != nil {
		msg["arguments"] = arguments
	}
	err := json.NewEncoder(q.conn).Encode(msg)
	if err != nil {
		delete(q.wait, id)
	}
	q.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("qmp %s: %w", command, err)
	}
	select {
	case reply, ok := <-ch:
		switch {
		case !ok:
			return nil, fmt.Errorf("qmp %s: %w", command, ErrEnded)
		case reply.Error != nil:
			return nil, fmt.Errorf("qmp %s: %s (%s)", command, reply.Error.Desc, reply.Error.Class)
		}
		return reply.Return, nil
	case <-time.After(20 * time.Second):
		return nil, fmt.Errorf("qmp %s: %w", command, ErrTimeout)
	}
}
