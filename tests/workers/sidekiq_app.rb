# A Sidekiq application: what its jobs are given goes to the file RECORD, one JSON object a line.
#
#     sidekiq -r ./sidekiq_app.rb -q default -q other

require "json"
require "sidekiq"

settings = {url: ENV.fetch("BROKER_URL")}
Sidekiq.configure_server do |config|
  config.redis = settings
  # The tests don't wait a quarter of a minute for what is due.
  (config.respond_to?(:[]=) ? config : config.options)[:poll_interval_average] = 1
end
Sidekiq.configure_client { |config| config.redis = settings }

module Noting
  def note(args)
    line = {"job" => self.class.name, "jid" => jid, "args" => args, "message" => Thread.current[:message]}
    File.open(ENV.fetch("RECORD"), "a") { |record| record.syswrite(JSON.generate(line) + "\n") }
  end
end

class KeepMessage
  def call(_job, message, _queue)
    Thread.current[:message] = message
    yield
  end
end

Sidekiq.configure_server do |config|
  config.server_middleware { |chain| chain.add KeepMessage }
end

class Work
  include Sidekiq::Worker
  include Noting

  def perform(*args)
    note(args)
  end
end

class Flaky
  include Sidekiq::Worker
  include Noting
  sidekiq_retry_in { 1 }

  def perform(*args)
    note(args)
    raise "not yet" if Thread.current[:message].fetch("retry_count", -1) < 0
  end
end
