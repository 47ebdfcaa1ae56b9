package acceptance

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// A mosquittoClient is mosquitto_sub, and a mosquitto_pub for each message: programs that cannot stay connected without a
// subscription.
type mosquittoClient struct {
	c       mqttConnect
	version int
	in      *mqttInbox
	mu      sync.Mutex
	subs    []*exec.Cmd
	ended   sync.WaitGroup
}

func openMosquitto(version int) func(context.Context, *mqttLab, mqttConnect) (mqttClient, error) {
	return func(ctx context.Context, _ *mqttLab, c mqttConnect) (mqttClient, error) {
		m := &mosquittoClient{c: c, version: version, in: newInbox()}
		if c.has != "" {
			if _, err := m.subscribe(ctx, c.has, 2); err != nil {
				return nil, err
			}
		}
		return m, nil
	}
}

// args are those that both programs take.
func (m *mosquittoClient) args(id string) ([]string, error) {
	u, err := url.Parse(m.c.url)
	if err != nil {
		return nil, err
	}
	version := "mqttv311"
	if m.version == 5 {
		version = "mqttv5"
	}
	args := []string{"-V", version, "-h", u.Hostname(), "-p", u.Port(), "-i", id}
	if m.c.password != "" {
		args = append(args, "-u", m.c.user(), "-P", m.c.password)
	}
	if u.Scheme == "mqtts" {
		args = append(args, "--cafile", m.c.ca)
	}
	if m.c.certificate != "" {
		args = append(args, "--cert", m.c.certificate, "--key", m.c.certificate)
	}
	return args, nil
}

func (m *mosquittoClient) publish(ctx context.Context, msg mqttMessage) error {
	args, err := m.args(m.c.id + "-pub")
	if err != nil {
		return err
	}
	args = append(args, "-q", strconv.Itoa(int(msg.qos)), "-t", msg.topic)
	if msg.payload == "" {
		args = append(args, "-n")
	} else {
		args = append(args, "-s")
	}
	if msg.retain {
		args = append(args, "-r")
	}
	property := func(name string, value ...string) {
		if m.version == 5 { // a property makes it one of version 5
			args = append(append(args, "-D", "publish", name), value...)
		}
	}
	if msg.contentType != "" {
		property("content-type", msg.contentType)
	}
	if msg.responseTopic != "" {
		property("response-topic", msg.responseTopic)
	}
	if msg.correlation != "" {
		property("correlation-data", msg.correlation)
	}
	if msg.expiry > 0 {
		property("message-expiry-interval", strconv.Itoa(int(msg.expiry)))
	}
	if msg.text {
		property("payload-format-indicator", "1")
	}
	if msg.alias > 0 {
		property("topic-alias", strconv.Itoa(int(msg.alias)))
	}
	for name, value := range msg.user {
		property("user-property", name, value)
	}
	cmd := exec.CommandContext(ctx, "mosquitto_pub", args...)
	cmd.Stdin = strings.NewReader(msg.payload)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		return fmt.Errorf("mosquitto_pub: %v: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func (m *mosquittoClient) subscribe(_ context.Context, filter string, qos byte) (byte, error) {
	id := m.c.id
	m.mu.Lock()
	if n := len(m.subs); n > 0 {
		id = fmt.Sprintf("%s-%d", id, n)
	}
	m.mu.Unlock()
	args, err := m.args(id)
	if err != nil {
		return 0, err
	}
	args = append(args, "-d", "-F", "%j", "-q", strconv.Itoa(int(qos)), "-t", filter)
	if m.c.keep {
		args = append(args, "-c")
		if m.version == 5 {
			args = append(args, "-x", strconv.Itoa(int(m.c.expiry5())))
		}
	}
	if m.c.receiveMaximum > 0 {
		args = append(args, "-D", "connect", "receive-maximum", strconv.Itoa(int(m.c.receiveMaximum)))
	}
	if w := m.c.will; w != nil {
		args = append(args, "--will-topic", w.topic, "--will-payload", w.payload, "--will-qos", strconv.Itoa(int(w.qos)))
	}
	cmd := exec.Command("stdbuf", append([]string{"-oL", "mosquitto_sub"}, args...)...) // which is replaced by the latter: a line is seen when it is written
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	m.mu.Lock()
	m.subs = append(m.subs, cmd)
	m.mu.Unlock()
	granted, failed := make(chan byte, 1), make(chan error, 1)
	m.ended.Go(func() {
		said := m.listen(bufio.NewScanner(out), granted)
		err := cmd.Wait()
		failed <- fmt.Errorf("mosquitto_sub: %v: %s", err, said)
	})
	select {
	case q := <-granted:
		return q, nil
	case err := <-failed:
		return 0, err
	}
}

// listen takes what mosquitto_sub prints: messages in JSON, and with -d what it does. It returns the last line that says
// anything else.
func (m *mosquittoClient) listen(lines *bufio.Scanner, granted chan<- byte) (said string) {
	lines.Buffer(nil, 1<<20)
	dup := false
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "{"):
			msg, err := mosquittoMessage([]byte(line))
			if err != nil {
				said = err.Error()
				continue
			}
			msg.dup = dup
			m.in.put(msg)
		case strings.HasPrefix(line, "Subscribed (mid: "):
			_, codes, _ := strings.Cut(line, "): ")
			q, err := strconv.Atoi(codes)
			if err != nil {
				q = 0x80
			}
			select {
			case granted <- byte(q):
			default:
			}
		case strings.Contains(line, " received PUBLISH (d"):
			dup = strings.Contains(line, " received PUBLISH (d1")
		case !strings.HasPrefix(line, "Client "):
			said = line
		}
	}
	return said
}

func mosquittoMessage(line []byte) (mqttMessage, error) {
	var doc struct {
		Topic, Payload string
		QoS            byte
		Retain         int
		Properties     struct {
			ContentType   string            `json:"content-type"`
			ResponseTopic string            `json:"response-topic"`
			Correlation   string            `json:"correlation-data"`
			User          map[string]string `json:"user-properties"`
			Expiry        uint32            `json:"message-expiry-interval"`
			Format        byte              `json:"payload-format-indicator"`
		}
	}
	if err := json.Unmarshal(line, &doc); err != nil {
		return mqttMessage{}, fmt.Errorf("%w in %s", err, line)
	}
	v := doc.Properties
	return mqttMessage{topic: doc.Topic, payload: doc.Payload, qos: doc.QoS, retain: doc.Retain == 1, contentType: v.ContentType,
		responseTopic: v.ResponseTopic, correlation: v.Correlation, user: v.User, expiry: v.Expiry, text: v.Format == 1}, nil
}

func (m *mosquittoClient) unsubscribe(context.Context, string) error {
	return errors.New("mosquitto_sub cannot unsubscribe while it runs")
}
func (m *mosquittoClient) present() bool     { return false } // it does not say
func (m *mosquittoClient) inbox() *mqttInbox { return m.in }
func (m *mosquittoClient) release()          {}
func (m *mosquittoClient) close() error      { return m.end(syscall.SIGTERM) }
func (m *mosquittoClient) drop() error       { return m.end(syscall.SIGKILL) }

func (m *mosquittoClient) end(s syscall.Signal) (err error) {
	m.mu.Lock()
	for _, cmd := range m.subs {
		if e := cmd.Process.Signal(s); e != nil {
			err = errors.Join(err, fmt.Errorf("mosquitto_sub ended by itself: %w", e))
		}
	}
	m.subs = nil
	m.mu.Unlock()
	m.ended.Wait()
	return err
}
