# Captures what Sidekiq's own client writes: ruby sidekiq_fixtures.rb redis://... FOLDER, with an empty private server.

require "json"
require "sidekiq"

url, folder = ARGV
Sidekiq.configure_client { |config| config.redis = {url: url} }

class Work
  include Sidekiq::Worker
end

CASES = {
  "01_args" => {"args" => [2, 3]},
  "02_unicode_and_nested" => {"args" => ["Łódź ☃", {"a" => [1, nil, true]}]},
  "03_big_integers_and_floats" => {"args" => [2**80, -2**80, 0.1, 1e300]},
  "04_nothing" => {"args" => []},
  "05_retry" => {"args" => [], "retry" => 3, "backtrace" => 5, "dead" => false, "retry_queue" => "slow"},
  "06_no_retry" => {"args" => [], "retry" => false, "backtrace" => true},
  "07_tags" => {"args" => [], "tags" => ["a", "b"]},
  "08_queue" => {"args" => [1], "queue" => "other"},
  "09_at" => {"args" => [1], "at" => 1_795_352_400.5},
  "10_own_member" => {"args" => [1], "trace_id" => "abc", "mine" => {"a" => [1]}},
  "11_wrapped" => {
    "class" => "ActiveJob::QueueAdapters::SidekiqAdapter::JobWrapper",
    "wrapped" => "ReceiptJob",
    "args" => [{"job_class" => "ReceiptJob", "job_id" => "x", "arguments" => [1]}]
  }
}

CASES.each do |name, item|
  Sidekiq.redis { |connection| connection.respond_to?(:flushall) ? connection.flushall : connection.call("FLUSHALL") }
  Sidekiq::Client.push({"class" => "Work"}.merge(item))
  found = {"case" => name, "sidekiq" => Sidekiq::VERSION}
  Sidekiq.redis do |connection|
    found["queues"] = connection.smembers("queues").sort
    found["keys"] = found["queues"].map { |queue| "queue:#{queue}" }.to_h { |key|
      [key, connection.lrange(key, 0, -1).map { |job| JSON.parse(job) }]
    }
    due = connection.zrange("schedule", 0, -1, withscores: true)
    found["schedule"] = due.map { |job, score| {"score" => score, "job" => JSON.parse(job)} }
  end
  File.write(File.join(folder, "#{name}.json"), JSON.pretty_generate(found) + "\n")
end
