# What a developer types. Each target installs what is missing on Debian first, and says so.

.PHONY: test exam demo bench

# Everything: pure tests, and end-to-end tests on private real servers. These mostly wait for one another's servers, so there is
# one more at a time than cores.
test:
	scripts/apt-install.sh postgresql redis-server rabbitmq-server nats-server python3-venv libfaketime ruby-sidekiq npm libssl-dev pkg-config
	scripts/python-env.sh
	scripts/python-env.sh $${CARGO_TARGET_DIR:-target}/moto tests/fixtures/moto/requirements.txt
	scripts/node-env.sh
	scripts/postgres-versions.sh
	cargo test --features kafka-tls,sqs -- --test-threads=$$(($$(nproc) + 1))

# The reliability exam in full, some hours: every fault, over every sink that it concerns, with a receipt of what was measured.
# ROWS=1,4 sits some rows, SINKS=nats,amqp those over some sinks.
exam:
	scripts/apt-install.sh postgresql redis-server rabbitmq-server nats-server python3-venv libfaketime libssl-dev pkg-config
	scripts/python-env.sh
	scripts/python-env.sh $${CARGO_TARGET_DIR:-target}/moto tests/fixtures/moto/requirements.txt
	scripts/postgres-versions.sh
	ROWS="$(ROWS)" SINKS="$(SINKS)" scripts/exam.sh

# The problem and the cure, live; with CELERY=1 also on a real Redis and a real Celery worker.
demo:
	scripts/apt-install.sh postgresql $(if $(CELERY),redis-server python3-venv)
	$(if $(CELERY),scripts/python-env.sh)
	cargo run --quiet --release -- demo $(if $(CELERY),--celery)

# How fast it is, as ratios to a bare loop: about ten minutes. benches/README.md explains.
bench:
	scripts/apt-install.sh postgresql redis-server rabbitmq-server nats-server python3-venv libssl-dev pkg-config
	scripts/python-env.sh $${CARGO_TARGET_DIR:-target}/moto tests/fixtures/moto/requirements.txt
	benches/run.sh
