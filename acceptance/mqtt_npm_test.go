package acceptance

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// A nodeClients is a process that holds clients of the npm package mqtt: see testdata/mqtt.cjs.
type nodeClients struct {
	mu      sync.Mutex
	in      io.Writer
	n       int
	waiting map[int]chan nodeAnswer
	inboxes map[string]*mqttInbox
	over    error
}

type nodeAnswer struct {
	N       int
	Error   string
	Present bool
	Granted byte
	Client  string
	Message *nodeMessage
}

// A nodeMessage is a mqttMessage on the way to node and back.
type nodeMessage struct {
	Topic         string            `json:"topic"`
	Payload       []byte            `json:"payload"`
	QoS           byte              `json:"qos"`
	Retain        bool              `json:"retain"`
	Dup           bool              `json:"dup"`
	ContentType   string            `json:"contentType,omitempty"`
	ResponseTopic string            `json:"responseTopic,omitempty"`
	Correlation   string            `json:"correlation,omitempty"`
	User          map[string]string `json:"user,omitempty"`
	Expiry        uint32            `json:"expiry,omitempty"`
	Text          bool              `json:"text,omitempty"`
	Alias         uint16            `json:"alias,omitempty"`
}

func startNode(t *testing.T) *nodeClients {
	t.Helper()
	cmd := exec.Command("node", filepath.Join("testdata", "mqtt.cjs"))
	cmd.Env = append(os.Environ(), "NODE_PATH="+npm(t))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n := &nodeClients{in: in, waiting: map[int]chan nodeAnswer{}, inboxes: map[string]*mqttInbox{}}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		n.read(bufio.NewScanner(out))
	}()
	t.Cleanup(func() {
		_ = in.Close() // it ends by that
		<-ended
		if err := cmd.Wait(); err != nil {
			t.Errorf("node: %v", err)
		}
	})
	return n
}

func (n *nodeClients) read(lines *bufio.Scanner) {
	lines.Buffer(nil, 4<<20)
	var err error
	for err == nil && lines.Scan() {
		var a nodeAnswer
		if err = json.Unmarshal(lines.Bytes(), &a); err != nil {
			err = fmt.Errorf("node says %.200s: %w", lines.Text(), err)
			break
		}
		n.mu.Lock()
		in, answered := n.inboxes[a.Client], n.waiting[a.N]
		delete(n.waiting, a.N)
		n.mu.Unlock()
		if m := a.Message; m != nil && in != nil {
			in.put(mqttMessage{topic: m.Topic, payload: string(m.Payload), qos: m.QoS, retain: m.Retain, dup: m.Dup, contentType: m.ContentType,
				responseTopic: m.ResponseTopic, correlation: m.Correlation, user: m.User, expiry: m.Expiry, text: m.Text})
		} else if answered != nil {
			answered <- a
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.over = errors.Join(err, lines.Err(), errors.New("node has ended"))
	for _, c := range n.waiting {
		c <- nodeAnswer{Error: n.over.Error()}
	}
}

// ask sends a command and waits for its answer.
func (n *nodeClients) ask(ctx context.Context, command map[string]any) (nodeAnswer, error) {
	answered := make(chan nodeAnswer, 1)
	n.mu.Lock()
	n.n++
	command["n"] = n.n
	n.waiting[n.n] = answered
	line, err := json.Marshal(command)
	if err == nil && n.over != nil {
		err = n.over
	}
	if err == nil {
		_, err = n.in.Write(append(line, '\n'))
	}
	n.mu.Unlock()
	if err != nil {
		return nodeAnswer{}, err
	}
	select {
	case a := <-answered:
		if a.Error != "" {
			var code byte
			if _, err := fmt.Sscanf(a.Error, "refused %d", &code); err == nil {
				return a, mqttRefused{code}
			}
			return a, errors.New(a.Error)
		}
		return a, nil
	case <-ctx.Done():
		return nodeAnswer{}, ctx.Err()
	}
}

// An npmClient is one of them.
type npmClient struct {
	nodes *nodeClients
	name  string
	in    *mqttInbox
	had   bool
}

func openNPM(version int) func(context.Context, *mqttLab, mqttConnect) (mqttClient, error) {
	return func(ctx context.Context, l *mqttLab, c mqttConnect) (mqttClient, error) {
		p := &npmClient{nodes: l.node, in: newInbox()}
		l.node.mu.Lock()
		p.name = fmt.Sprintf("%s at %d", c.id, l.node.n)
		l.node.inboxes[p.name] = p.in
		l.node.mu.Unlock()
		connect := map[string]any{"url": c.url, "id": c.id, "user": c.user(), "password": c.password, "ca": c.ca, "certificate": c.certificate, "keep": c.keep, "expiry": c.expiry5(),
			"receiveMaximum": c.receiveMaximum, "again": c.again}
		if w := c.will; w != nil {
			connect["will"] = map[string]any{"topic": w.topic, "payload": w.payload, "qos": w.qos, "retain": w.retain}
		}
		a, err := l.node.ask(ctx, map[string]any{"do": "open", "client": p.name, "version": version, "connect": connect})
		if err != nil {
			return nil, err
		}
		p.had = a.Present
		return p, nil
	}
}

func (p *npmClient) ask(ctx context.Context, do string, more map[string]any) (nodeAnswer, error) {
	command := map[string]any{"do": do, "client": p.name}
	for k, v := range more {
		command[k] = v
	}
	return p.nodes.ask(ctx, command)
}

func (p *npmClient) publish(ctx context.Context, m mqttMessage) error {
	_, err := p.ask(ctx, "publish", map[string]any{"message": nodeMessage{Topic: m.topic, Payload: []byte(m.payload), QoS: m.qos, Retain: m.retain,
		ContentType: m.contentType, ResponseTopic: m.responseTopic, Correlation: m.correlation, User: m.user, Expiry: m.expiry, Text: m.text, Alias: m.alias}})
	return err
}

func (p *npmClient) subscribe(ctx context.Context, filter string, qos byte) (byte, error) {
	a, err := p.ask(ctx, "subscribe", map[string]any{"filter": filter, "qos": qos})
	return a.Granted, err
}

func (p *npmClient) unsubscribe(ctx context.Context, filter string) error {
	_, err := p.ask(ctx, "unsubscribe", map[string]any{"filter": filter})
	return err
}

func (p *npmClient) present() bool     { return p.had }
func (p *npmClient) inbox() *mqttInbox { return p.in }
func (p *npmClient) release()          {}
func (p *npmClient) close() error      { return p.brief("close") }
func (p *npmClient) drop() error       { return p.brief("drop") }

func (p *npmClient) brief(do string) error {
	ctx, cancel := context.WithTimeout(context.Background(), mqttWait)
	defer cancel()
	_, err := p.ask(ctx, do, nil)
	return err
}
